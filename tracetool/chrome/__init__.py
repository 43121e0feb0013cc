"""Chrome trace JSON, as Kineto writes it and as other tools write it again."""

from tracetool.chrome.reader import read, read_head

__all__ = ["read", "read_head"]
