"""Publishes what dead processes left in a landing folder: python -m mltrust.client <folder> [--all-hosts]."""

import argparse
import sys

from mltrust.client.landing import recover


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mltrust.client", description=__doc__)
    parser.add_argument("folder", help="the landing folder of a log, with records and outcomes in it")
    parser.add_argument("--all-hosts", action="store_true", help="also files of hosts that are gone")
    arguments = parser.parse_args()
    for path in recover(arguments.folder, all_hosts=arguments.all_hosts):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
