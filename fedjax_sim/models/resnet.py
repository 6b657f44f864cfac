"""A small residual network whose normalisation looks at one example alone, as federated clients need it."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_sim.core.types import Array
from fedjax_sim.models.layers import Conv, Dense

CHANNELS, GROUP = (16, 32, 64), 8


class GroupNorm(nnx.Module):
    """`x [B, H, W, C]` normalised over positions and groups of eight channels (Wu and He 2018), scaled and shifted."""

    def __init__(self, channels: int):
        self.scale, self.shift = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        grouped = x.reshape(*x.shape[:3], -1, GROUP)
        centred = grouped - grouped.mean((1, 2, 4), keepdims=True)
        deviation = jnp.sqrt(jnp.square(centred).mean((1, 2, 4), keepdims=True) + 1e-5)
        return (centred / deviation).reshape(x.shape) * self.scale[...] + self.shift[...]


def halve(x: Array) -> Array:
    """The mean of each 2 x 2 square, [B, H, W, C] to [B, H // 2, W // 2, C]; an odd last row is dropped."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Block(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut; where channels grow, both see the halved image, and the shortcut is
    filled up with zeros (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, *, rng: np.random.Generator):
        self.grows = outputs - inputs
        self.conv0 = Conv(inputs, outputs, 3, rng=rng)
        self.norm0 = GroupNorm(outputs)
        self.conv1 = Conv(outputs, outputs, 3, rng=rng)
        self.norm1 = GroupNorm(outputs)

    def __call__(self, x: Array) -> Array:
        x = halve(x) if self.grows else x
        shortcut = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.grows)))
        return nnx.relu(shortcut + self.norm1(self.conv1(nnx.relu(self.norm0(self.conv0(x))))))


class ResNet(nnx.Module):
    """ResNet-8: a convolution, one block each of 16, 32 and 64 channels, the mean over positions, and the output (He et
    al. 2016, section 4.2, n = 1), with group instead of batch normalisation (Hsieh et al. 2020) and halving by means
    instead of strides; 75,530 parameters on 32 x 32 x 3 and 10 classes."""

    def __init__(self, depth: int, classes: int, *, rng: np.random.Generator):
        self.layer0 = Conv(depth, CHANNELS[0], 3, rng=rng)
        self.layer0_norm = GroupNorm(CHANNELS[0])
        for i, channels in enumerate(CHANNELS):
            setattr(self, f"layer{i + 1}", Block(CHANNELS[max(i - 1, 0)], channels, rng=rng))
        setattr(self, f"layer{len(CHANNELS) + 1}", Dense(CHANNELS[-1], classes, rng=rng))

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.layer0_norm(self.layer0(x)))
        for i in range(len(CHANNELS)):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, f"layer{len(CHANNELS) + 1}")(x.mean((1, 2)))
