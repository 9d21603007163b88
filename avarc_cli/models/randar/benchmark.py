"""What `avarc bench` scores: a RandAR's weights and one image's tokens in raster order."""

from __future__ import annotations

from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
from avarc_cli.models.randar import reference
from avarc_cli.models.randar.config import RandARConfig
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.models.randar.network import RandAR
from avarc_cli.models.randar.shapes import SIZES


class RandARWorkload(LlamaGenWorkload):
    """One image with random tokens; every model that it makes has the same weights."""

    network = RandAR
    likelihood = RandARLikelihood
    config = RandARConfig
    sizes = SIZES
    reference_log_probs = staticmethod(reference.token_log_probs)
