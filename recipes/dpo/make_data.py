"""Write the data of the preference recipes (dpo, kto, orpo-simpo, reward-best-of-n) and say how many rows each file has.

python recipes/dpo/make_data.py --output runs/preferences/data
"""

import argparse
from pathlib import Path

from tunesmith.starter.preferences import write_preferences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/preferences/data"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for path in write_preferences(given.output, given.seed).values():
        print(f"{path}  {len(path.read_text(encoding='utf-8').splitlines()):,} rows")


if __name__ == "__main__":
    main()
