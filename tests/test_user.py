"""A user whom the system does not know."""

import os
import subprocess
import sys


def test_a_user_without_a_name_or_a_home() -> None:
    code = (
        "import os, pwd\nfrom contrails.user import home, user_name\n"
        "def unknown(*_): raise KeyError('uid not found')\npwd.getpwuid = unknown\n"
        "for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME', 'HOME'): os.environ.pop(name, None)\n"
        "print(user_name(), home())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(os.getuid()), "/"], done.stderr
