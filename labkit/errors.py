"""The one exception for everything a user can mend.

Its message is one sentence that names the value, the allowed range and the remedy. The command line
prints it and exits with code 2; a notebook shows it as the last line of the traceback.
"""


class LabError(ValueError):
    """Bad input, said in one clear sentence."""
