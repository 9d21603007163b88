"""Tokens in the files of other programs: importing them into a token cache, and exporting a cache to them.

Each format is a module that reads and writes it: `llamagen`, `randar`, `json_lines` and `arrays`. Reading is in two
steps, as with images: the source is listed (`codes.Codes`), and its records are read when chunks are computed.
"""
