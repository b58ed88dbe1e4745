"""Samplers: a time grid and a reverse kernel; they hold no network."""

from burnish.samplers.ddim import DDIM as DDIM
from burnish.samplers.ddpm import DDPM as DDPM
from burnish.samplers.dpm import DPMSolver as DPMSolver
from burnish.samplers.flow import CPS as CPS
from burnish.samplers.flow import DanceSDE as DanceSDE
from burnish.samplers.flow import FlowODE as FlowODE
from burnish.samplers.flow import FlowSDE as FlowSDE
from burnish.samplers.window import Window as Window
