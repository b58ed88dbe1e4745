from .algorithms.ddpo import DDPOIS as DDPOIS
from .algorithms.ddpo import DDPOSF as DDPOSF
from .models.hub import load as load
from .policy import Policy as Policy
from .prompts import Listed as Listed
from .prompts import Prompt as Prompt
from .rollout import Samples as Samples
from .rollout import sample as sample
from .samplers.ddim import DDIM as DDIM
from .samplers.ddpm import DDPM as DDPM
from .samplers.dpm import DPMSolver as DPMSolver
from .samplers.flow import CPS as CPS
from .samplers.flow import DanceSDE as DanceSDE
from .samplers.flow import FlowODE as FlowODE
from .samplers.flow import FlowSDE as FlowSDE
from .samplers.window import Window as Window
from .train.loop import train as train
from .train.settings import AdamW as AdamW
from .train.settings import Training as Training

__version__: str
