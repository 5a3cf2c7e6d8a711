"""Models. bitsandbytes and torchao, which PEFT imports wherever they are installed, come in quietly and fetch nothing."""

import sys

from tunesmith.model.quiet_imports import Quiet

if not any(isinstance(finder, Quiet) for finder in sys.meta_path):
    sys.meta_path.insert(0, Quiet())
