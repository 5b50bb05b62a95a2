"""Networks, each one self-contained file: (moving, fixed) -> displacement (N, D, *S) in voxels."""
from diffreg.models.lunet import LUNet
