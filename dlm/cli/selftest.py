"""`dlm selftest`."""

import json
import time
from dataclasses import asdict

from dlm.cli import options
from dlm.cli.console import note, write_data
from dlm.errors import SelftestError


def selftest(
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check the mathematics on this machine against answers that are known.

    Each line is a claim, the exact value, the value computed here and how far apart they may be. A claim begins with
    the number of its truth in dlm/diffusion/README.md.

    Example:  dlm selftest
    """
    from dlm.selftest import truths

    began = time.perf_counter()
    if not as_json:
        write_data(f"      {'exact':>13} {'computed':>13} {'within':>8}  claim", None)
    checks = []
    for check in truths():
        checks.append(check)
        if not as_json:
            verdict = "ok" if check.holds else "FAILS"
            figures = f"{check.exact:>13.10f} {check.computed:>13.10f} {check.tolerance:>8.2g}"
            write_data(f"{verdict:<5} {figures}  {check.claim}", None)
    seconds, failed = time.perf_counter() - began, [check for check in checks if not check.holds]
    if as_json:
        rows = [{**asdict(check), "holds": check.holds} for check in checks]
        write_data(json.dumps({"holds": not failed, "checks": rows}), None)
    if failed:
        raise SelftestError(f"{len(failed)} of {len(checks)} truths do not hold on this machine: {failed[0].claim}")
    note(f"{len(checks)} truths hold, {seconds:.0f} s")
