"""Chrome trace JSON, as Kineto writes it and as other tools write it again."""

from tracetool.chrome.reader import read

__all__ = ["read"]
