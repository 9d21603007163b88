"""TA-TiTok, TiToks whose decoder also reads a caption (arXiv:2501.07730)."""
