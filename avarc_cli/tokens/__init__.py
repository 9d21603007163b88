"""Images as tokens on disk: encoding them, and the cache that holds them."""

from avarc_cli.tokens.cache import TokenCache, read
from avarc_cli.tokens.encode import EncodeResult, encode
from avarc_cli.tokens.header import CacheHeader
from avarc_cli.tokens.noise import neighbour_noise

__all__ = ["CacheHeader", "EncodeResult", "TokenCache", "encode", "neighbour_noise", "read"]
