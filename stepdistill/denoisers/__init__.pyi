from .base import Denoiser as Denoiser
from .config import Roles as Roles
from .loading import FAMILIES as FAMILIES
from .loading import load_teacher as load_teacher
