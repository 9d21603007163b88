"""The LlamaGen tokenizers as the registry sees them: building a network from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.likelihood import TokenizerFamily
from avarc_cli.tokenizers.llamagen_vq.config import TITLE, read_config
from avarc_cli.tokenizers.llamagen_vq.network import LlamaGenVQ

STATISTICS = "quantize.codebook_used"  # codes that the training used last


class LlamaGenVQFamily(TokenizerFamily):
    name = "llamagen-vq"
    title = TITLE
    signature = ("quantize.embedding.weight", "encoder.conv_blocks.0.res.0.conv1.weight", "encoder.mid.1.q.weight")

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> LlamaGenVQ:
        """The network; training statistics are ignored."""
        weights = {key: tensor for key, tensor in tensors.items() if key != STATISTICS}
        config = read_config(weights, stated, source)
        return build(lambda: LlamaGenVQ(config), weights, source=source, expected=TITLE)


FAMILY = LlamaGenVQFamily()
