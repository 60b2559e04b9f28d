"""``python -m workflows.ec2.hub FILE SOCKET FLEET LOG``: the hub of a run on an EC2 fleet."""

import os
import sys

from workflows.ec2.lease import keeper
from workflows.transports.hub import main

if __name__ == "__main__":
    code = main(keeper(sys.argv[3], sys.argv[4]))
    sys.stdout.flush()
    os._exit(code)  # threads that wait for nodes must not hold it back
