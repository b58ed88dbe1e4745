"""Rewards: functions of samples to one number a sample.

Those of burnish say by `differentiable` whether their gradient reaches the image; a function of one's own is
found out when it is first asked.
"""

from burnish.rewards.image import Brightness as Brightness
from burnish.rewards.image import Compressibility as Compressibility
from burnish.rewards.image import Incompressibility as Incompressibility
from burnish.rewards.portraits import PortraitAlignment as PortraitAlignment
from burnish.rewards.portraits import PortraitLikelihood as PortraitLikelihood
from burnish.rewards.remote import Remote as Remote
