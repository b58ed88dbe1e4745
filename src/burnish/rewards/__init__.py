"""Rewards: functions of samples to one number a sample.

Those of burnish say by `differentiable` whether their gradient reaches the image; a function of one's own is
found out when it is first asked.
"""

from burnish.rewards.combine import Combine as Combine
from burnish.rewards.combine import Constraint as Constraint
from burnish.rewards.combine import Gate as Gate
from burnish.rewards.combine import Term as Term
from burnish.rewards.diversity import Diversity as Diversity
from burnish.rewards.files import Compressibility as Compressibility
from burnish.rewards.files import Incompressibility as Incompressibility
from burnish.rewards.files import WebPCompressibility as WebPCompressibility
from burnish.rewards.files import WebPIncompressibility as WebPIncompressibility
from burnish.rewards.learned.aesthetic import Aesthetic as Aesthetic
from burnish.rewards.learned.clip_score import CLIPScore as CLIPScore
from burnish.rewards.learned.hps_v2 import HPSv2 as HPSv2
from burnish.rewards.learned.image_reward import ImageReward as ImageReward
from burnish.rewards.learned.pick_score import PickScore as PickScore
from burnish.rewards.learned.similarity import BERTScore as BERTScore
from burnish.rewards.learned.similarity import Sentences as Sentences
from burnish.rewards.portraits import PortraitAlignment as PortraitAlignment
from burnish.rewards.portraits import PortraitLikelihood as PortraitLikelihood
from burnish.rewards.preference import Preference as Preference
from burnish.rewards.quality import Quality as Quality
from burnish.rewards.readings import AnswerSimilarity as AnswerSimilarity
from burnish.rewards.readings import Grade as Grade
from burnish.rewards.readings import YesNo as YesNo
from burnish.rewards.reference import Similarity as Similarity
from burnish.rewards.reference import StructuralSimilarity as StructuralSimilarity
from burnish.rewards.remote import Remote as Remote
from burnish.rewards.safety import Safety as Safety
from burnish.rewards.statistics import Brightness as Brightness
from burnish.rewards.statistics import Colourfulness as Colourfulness
from burnish.rewards.statistics import Contrast as Contrast
from burnish.rewards.statistics import Entropy as Entropy
from burnish.rewards.statistics import Sharpness as Sharpness
from burnish.rewards.symmetry import MirrorSymmetry as MirrorSymmetry
from burnish.rewards.symmetry import RotationSymmetry as RotationSymmetry
from burnish.rewards.text_rendering import TextRendering as TextRendering
from burnish.rewards.vlm import VLM as VLM
