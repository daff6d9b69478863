"""Cases of tests/boot in which the kernel fails on purpose: panics, faults, stacks that overflow, an NMI, processors that
will not do."""

Q35, PC = ["-M", "q35"], ["-M", "pc"]
# Each root port is a bus of its own, and eight are a device.
BUSES = 200


def panic_and_reboot(console):
    console.wait_for(r"moraine panic: panicked at .*mishaps.rs:\d+")
    console.wait_for(r"asked for by the boot word")
    console.wait_for(r"return addresses on the stack.*\+0x")
    console.wait_for(r"moraine panicked; rebooting")
    console.wait_for(r"booting by PVH")
    console.wait_for(r"the last boot ended in a panic")
    console.wait_for(r"\| moraine panic: panicked at .*mishaps.rs")


def fault_and_halt(console):
    console.wait_for(r"exception 14 \(page fault\)")
    console.wait_for(r"reading 0x10: not mapped")
    console.wait_for(r"^rax [0-9a-f]{16}")
    console.wait_for(r"halting \(panic=halt\)")


def panic_in_a_storm(console):
    """Three cores log all the time, the fourth panics: nothing of theirs follows, and the next boot knows of the panic."""
    console.wait_for(r"storm: line")
    console.wait_for(r"moraine panic: panicked")
    begin = console.seen
    for core in (1, 2, 3):
        console.wait_for(rf"core {core} was at ")
    console.wait_for(r"moraine panicked; rebooting")
    console.wait_for(r"booting by PVH")
    assert "storm" not in console.text[begin:console.seen].replace("selftest=storm", ""), "the other cores are silent"
    console.wait_for(r"the last boot ended in a panic")


def panic_twice(console):
    """Each line of the report is a fault: it is given up, and the machine still reboots."""
    console.wait_for(r"moraine panic: exception 14 at image \+ 0x[0-9a-f]+ amid the report")
    console.wait_for(r"moraine panicked; rebooting")
    console.wait_for(r"booting by PVH")
    assert console.text.count("amid the report") == 1, "the second fault is told once"


def overflows(name, *more):
    """Expects the report to name the stack, and the lines of `more` after it."""

    def check(console):
        console.wait_for(r"exception 14 \(page fault\)")
        console.wait_for(rf"^{name} overflowed")
        for pattern in more:
            console.wait_for(pattern)
        console.wait_for(r"halting \(panic=halt\)")

    return check


def nmi(before, *more):
    """Somebody sends an NMI once `before` was seen: a report, once, whatever the core is doing, then the policy."""

    def check(console):
        console.wait_for(before)
        console.command("inject-nmi")
        console.wait_for(r"^exception 2 \(non-maskable interrupt\)")
        console.wait_for(r"^moraine panic: an NMI from outside")
        console.wait_for(r"^at 0x[0-9a-f]+ = image \+")
        for pattern in more:
            console.wait_for(pattern)
        # The next boot shows the report once more, behind bars.
        assert console.text.count("\nmoraine panic:") == 1, "one core reports"

    return check


def root_ports():
    arguments = []
    for i in range(BUSES):
        place = f"addr={i // 8 + 3:x}.{i % 8}" + (",multifunction=on" if i % 8 == 0 else "")
        arguments += ["-device", f"pcie-root-port,id=r{i},chassis={i},{place},io-reserve=0,hotplug=off"]
    return arguments


def idle(console):
    console.wait_for(r"^moraine idle")


def lacks(names):
    def check(console):
        console.wait_for(rf"needs an x86-64-v2 processor.*lacks {names}; stopping")

    return check


def no_long_mode(console):
    console.wait_for(r"needs a 64-bit x86 processor")


def run(cases, boot, microvm):
    """`boot` makes QEMU's arguments, `microvm` are those of that machine."""
    halt = " panic=halt"
    four, two = ["-smp", "4"], ["-smp", "2"]
    cases.case("panic-and-the-boot-after", boot(Q35, "selftest=panic"), panic_and_reboot)
    cases.case("panic-amid-4-cpus", boot(Q35, "selftest=storm", more=four), panic_in_a_storm)
    cases.case("panic-twice", boot(Q35, "selftest=twice"), panic_twice)
    cases.case("fault", boot(Q35, "selftest=fault" + halt), fault_and_halt)
    cases.case("overflow", boot(Q35, "selftest=overflow" + halt), overflows("the stack of core 0"))
    for kind in ("interrupts", "exceptions", "emergencies"):
        cases.case(f"overflow-{kind}", boot(Q35, f"selftest=overflow-{kind}" + halt), overflows(f"the stack for {kind} of core 0"))
    cases.case("overflow-second", boot(Q35, "selftest=overflow-second" + halt, more=["-smp", "3"]),
               overflows("the stack of core [12]", r"this was core [12]", r"core 0 was at image", r"core [12] was at image"))
    cases.case("nmi-to-a-hung-core", boot(Q35, "selftest=hang" + halt), nmi(r"hangs now", r"halting \(panic=halt\)"))
    cases.case("nmi-to-2-idle-cpus", boot(PC, "", more=two),
               nmi(r"^moraine idle", r"this was core", r"rebooting", r"booting by PVH", r"the last boot ended in a panic"))
    cases.case("nmi-microvm", boot(microvm, halt), nmi(r"^moraine idle", r"halting"))
    cases.case(f"{BUSES}-buses", boot(Q35, "panic=halt", more=root_ports()), idle)
    cases.case("old-processor", boot(Q35, "", cpu=["-cpu", "qemu64"]), lacks("SSSE3.*"))
    cases.case("without-cx16", boot(Q35, "", cpu=["-cpu", "Nehalem,-cx16"]), lacks("CMPXCHG16B"))
    cases.case("without-lahf-popcnt", boot(PC, "", cpu=["-cpu", "max,-erms,-lahf-lm,-popcnt"]), lacks("POPCNT, LAHF"))
    cases.case("no-long-mode", boot(Q35, "", cpu=["-cpu", "qemu32"]), no_long_mode)
