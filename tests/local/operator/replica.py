"""One operator replica as a process of its own: `python replica.py KUBECONFIG`, or with `--no-election` after it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.local.operator.fleets import FleetController

from tidewheel.controllers import operator
from tidewheel.controllers.settings import OperatorSettings

if __name__ == "__main__":
    operator.built_in_controllers = lambda *_: (FleetController(),)
    settings = OperatorSettings(
        kubeconfig=Path(sys.argv[1]), leader_election="--no-election" not in sys.argv, log_format="text"
    )
    sys.exit(operator.run(settings))
