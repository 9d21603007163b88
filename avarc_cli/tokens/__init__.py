"""Images as tokens on disk: encoding them, and the cache that holds them."""

from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import EncodeResult, encode
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.merge import merge
from avarc_cli.tokens.noise import sample_noise
from avarc_cli.tokens.verify import read_verified, verify
from avarc_cli.work.shards import Shard

__all__ = [
    "CacheHeader",
    "EncodeResult",
    "Shard",
    "TokenCache",
    "encode",
    "merge",
    "read",
    "read_verified",
    "sample_noise",
    "verify",
]
