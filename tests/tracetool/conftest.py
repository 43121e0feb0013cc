"""What tests of commands share."""

import pytest

from tracetool.cli import main


@pytest.fixture
def run(capfd):
    """Runs the whole command line in this process; gives exit code, standard output and standard error."""

    def call(*arguments):
        capfd.readouterr()
        code = main([str(one) for one in arguments])
        return code, *capfd.readouterr()

    return call
