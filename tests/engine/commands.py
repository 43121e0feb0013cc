"""Running the engine's command lines in this process, as a shell would."""


def one_sentence(err, program):
    """The message of a failure, which is all of standard error."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{program}: ")
    return lines[0].removeprefix(f"{program}: ")
