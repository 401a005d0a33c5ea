"""The codec: rows as entropy-coded symbols of a trained model, and back to the same bytes on every machine."""

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.fit import fit_codec
from llgae_cli.codec.model import CodecModel, store_codec
from llgae_cli.codec.settings import Settings

__all__ = ["Codec", "CodecModel", "Settings", "fit_codec", "store_codec"]
