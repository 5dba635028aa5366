"""A machine that is unplugged while it computes: no packet says that it is gone, and it takes half a minute to notice."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))

from far import Endless, Far, make_networks  # noqa: E402, the tests of whole programs have it
from programs import TIMEOUT_SECONDS  # noqa: E402

# Waiting for this machine most of the time, or for the other one only.
PLACES = {"experts here": ("-ngl", "99", "--cpu-moe"), "half here": ("-ngl", "15")}


@pytest.mark.parametrize("place", PLACES)
def test_a_machine_that_is_unplugged_ends_the_computation(place: str, tmp_path: Path) -> None:
    networks = make_networks()
    if not networks:
        pytest.skip("nothing can be unplugged: networks of one's own take root, unshare, nsenter and ip")
    try:
        with Far(networks, tmp_path) as far, Endless(far, tmp_path, *PLACES[place]) as endless:
            networks.unplug()
            assert endless.process.wait(TIMEOUT_SECONDS) == -signal.SIGABRT
            assert "Remote RPC server crashed" in endless.errors.read_text()
            networks.plug_in()
            with Endless(far, tmp_path, *PLACES[place]):
                pass  # the server, which serves one client at a time, has given up the other one
    finally:
        networks.close()
