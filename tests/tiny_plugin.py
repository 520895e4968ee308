"""`--plugin tests.tiny_plugin`: the smallest backbone, for commands that the tests start."""

from tests.tiny import register

register()
