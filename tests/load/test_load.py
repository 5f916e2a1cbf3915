"""Under steady traffic no change drops a request, whatever the app's manners are. Stalls are printed, not judged: machines are noisy.

`tests/load/run 100` prints the long table.
"""

import pytest

from load import CHANGES, KINDS, exercise, summed


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_no_request_fails_while_the_app_is_changed(switch, kind):
    result = exercise(switch, kind, redeploys=3, control_seconds=8)
    control, changed = (summed(result["phases"], names) for names in (["control"], CHANGES))
    assert not result["failures"], result["failures"][:10]
    assert all(result["phases"][what]["asked"] > 10 for what in CHANGES)
    assert changed["asked"] > 3 * kind.new_rate
    print(f"stalled without changes {control['stalled']} of {control['asked']}, during changes {changed['stalled']} of {changed['asked']}")
    assert changed["retried"] < 0.01 * changed["asked"]
