"""A network of one's own for a test: two taps on a bridge, seen by nobody else.

`enter()` starts the calling program again in a network namespace (with a /sys that shows it) where the appliance has
APPLIANCE, a client VM has CLIENT, and this machine is 10.9.0.1; loopback is there too. What needs the world outside,
builds above all, is done before.
"""
import os
import shlex
import sys

# Set in the network that this program starts itself again in.
OWN = "MORAINE_TEST_OWN_NETWORK"
APPLIANCE = ["--net", "tap:tap0", "--ip", "10.9.0.2/24"]  # for scripts/run
CLIENT = ["--net", "tap:tap1", "--ip", "10.9.0.3/24"]  # for tests/client/client
BRIDGE = """mount -t sysfs sys /sys
ip link add br0 type bridge; ip addr add 10.9.0.1/24 dev br0; ip link set br0 up
for t in tap0 tap1; do ip tuntap add $t mode tap; ip link set $t master br0; ip link set $t up; done
"""


def entered():
    return OWN in os.environ


def enter(bridge=True):
    """Returns in the new network; the program begins again from its start. Without a bridge there is loopback only."""
    if entered():
        return
    os.environ[OWN] = "1"
    me = shlex.join([sys.executable, os.path.realpath(sys.argv[0]), *sys.argv[1:]])
    script = "set -e\nip link set lo up\n" + (BRIDGE if bridge else "") + "exec " + me
    os.execvp("unshare", ["unshare", "-nm" if os.geteuid() == 0 else "-rnm", "sh", "-c", script])
