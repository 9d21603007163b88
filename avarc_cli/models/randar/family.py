"""The RandAR family as the registry sees it."""

from __future__ import annotations

from avarc_cli.models.llamagen.family import LlamaGenFamily
from avarc_cli.models.llamagen.network import LlamaGen
from avarc_cli.models.randar.benchmark import RandARWorkload
from avarc_cli.models.randar.config import RandARConfig
from avarc_cli.models.randar.initialize import initialize
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.models.randar.network import RandAR


class RandARFamily(LlamaGenFamily):
    name = RandARLikelihood.family
    title = RandARConfig.title
    signature = (*LlamaGenFamily.signature, "pos_instruct_embeddings")
    config = RandARConfig
    network = RandAR
    likelihood = RandARLikelihood
    workload = RandARWorkload

    def initialized(self, network: LlamaGen) -> LlamaGen:
        return initialize(network)


FAMILY = RandARFamily()
