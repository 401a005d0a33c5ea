"""The codec: rows as entropy-coded symbols of a trained model, and back to the same bytes on every machine.

Decoding needs no torch, and importing this does not import it; `fit`, `activity` and `encoder` do.
"""

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.model import CodecModel
from llgae_cli.codec.settings import Settings

__all__ = ["Codec", "CodecModel", "Settings"]
