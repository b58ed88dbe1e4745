"""Models by name: what is embedded, what is refused, what of a repository is downloaded."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.utils import filter_repo_objects

import burnish
from burnish.models.hub import UNWANTED, WANTED, locate
from burnish.portraits import FLOW_PIPELINE, PIPELINE

SD_1_4 = """
.gitattributes
README.md
feature_extractor/preprocessor_config.json *
model_index.json *
safety_checker/config.json
safety_checker/model.fp16.safetensors
safety_checker/model.safetensors
safety_checker/pytorch_model.bin
safety_checker/pytorch_model.fp16.bin
scheduler/scheduler_config.json *
text_encoder/config.json *
text_encoder/model.fp16.safetensors
text_encoder/model.safetensors *
text_encoder/pytorch_model.bin
text_encoder/pytorch_model.fp16.bin
tokenizer/merges.txt *
tokenizer/special_tokens_map.json *
tokenizer/tokenizer_config.json *
tokenizer/vocab.json *
unet/config.json *
unet/diffusion_pytorch_model.bin
unet/diffusion_pytorch_model.fp16.bin
unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.non_ema.safetensors
unet/diffusion_pytorch_model.safetensors *
vae/config.json *
vae/diffusion_pytorch_model.bin
vae/diffusion_pytorch_model.fp16.bin
vae/diffusion_pytorch_model.fp16.safetensors
vae/diffusion_pytorch_model.safetensors *
"""
"""The files of stable-diffusion-v1-4 (and one kind that v1-5 has besides), with a star if they are needed."""

SD_3_5_MEDIUM = """
.gitattributes
LICENSE.md
README.md
mmdit-x.png
model_index.json *
scheduler/scheduler_config.json *
sd3.5_medium.safetensors
sd3.5_medium_demo.jpg
text_encoder/config.json *
text_encoder/model.fp16.safetensors
text_encoder/model.safetensors *
text_encoder_2/config.json *
text_encoder_2/model.fp16.safetensors
text_encoder_2/model.safetensors *
text_encoder_3/config.json *
text_encoder_3/model-00001-of-00002.safetensors *
text_encoder_3/model-00002-of-00002.safetensors *
text_encoder_3/model.fp16-00001-of-00002.safetensors
text_encoder_3/model.fp16-00002-of-00002.safetensors
text_encoder_3/model.safetensors.index.fp16.json *
text_encoder_3/model.safetensors.index.json *
text_encoders/clip_g.safetensors
text_encoders/clip_l.safetensors
text_encoders/t5xxl_fp16.safetensors
text_encoders/t5xxl_fp8_e4m3fn.safetensors
tokenizer/merges.txt *
tokenizer/special_tokens_map.json *
tokenizer/tokenizer_config.json *
tokenizer/vocab.json *
tokenizer_2/merges.txt *
tokenizer_2/special_tokens_map.json *
tokenizer_2/tokenizer_config.json *
tokenizer_2/vocab.json *
tokenizer_3/special_tokens_map.json *
tokenizer_3/spiece.model *
tokenizer_3/tokenizer.json *
tokenizer_3/tokenizer_config.json *
transformer/config.json *
transformer/diffusion_pytorch_model.safetensors *
vae/config.json *
vae/diffusion_pytorch_model.safetensors *
"""
"""Those of stable-diffusion-3.5-medium; the index of the variant is small and comes along."""

SD_3_5_LARGE = """
sd3.5_large.safetensors
transformer/diffusion_pytorch_model-00001-of-00002.safetensors *
transformer/diffusion_pytorch_model-00002-of-00002.safetensors *
transformer/diffusion_pytorch_model.safetensors.index.json *
"""
"""Those in which stable-diffusion-3.5-large differs."""


@pytest.mark.parametrize("repository", [SD_1_4, SD_3_5_MEDIUM, SD_3_5_LARGE])
def test_one_copy_of_each_weight_is_downloaded_and_all_that_is_read(repository):
    lines = [line.split() for line in repository.split("\n") if line]
    chosen = filter_repo_objects(
        [name for name, *_ in lines], allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
    )
    assert list(chosen) == [name for name, *star in lines if star]


def test_embedded_models_are_found_by_name():
    assert locate("portraits") == PIPELINE
    assert locate("portraits-flow") == FLOW_PIPELINE
    assert (PIPELINE / "model_index.json").is_file()


def test_folders_that_hold_no_known_pipeline_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model_index"):
        burnish.load(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "OddPipeline"}))
    with pytest.raises(ValueError, match=r"OddPipeline.*StableDiffusion3Pipeline"):
        burnish.load(str(tmp_path))


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match=r"no such folder.*portraits, portraits-flow"):
        burnish.load("no/such model")
