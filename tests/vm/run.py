#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs vramswap on a Debian kernel in an emulated machine. docs/vm.md says how; run.py --help lists the options."""
import argparse
import os
import pathlib
import re
import shlex
import shutil
import sys
import tempfile

sys.dont_write_bytecode = True  # the source tree stays as it is

# pylint: disable=wrong-import-position
import image
import kernels
import machine
import results

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCENARIOS = sorted(path.stem for path in (image.GUEST_FOLDER / "scenarios").glob("*.sh")) + [results.KERNEL_LOG]
VRAM_MIB = 384  # of the simulated GPU: set aside at boot, beside the RAM that Linux may use
SCENARIO_RAM_MIB = 576  # small, so that little data is more than it; `down` wants 64 of them left over
OTHER_RAM_MIB = 1024

# What scenarios use besides vramswap: programs of the build (may be missing in a build without tests), and of the host.
BUILT = ("tests/verifying_load", "tests/frontend_contract", "tests/loop_frontend_contract", "tests/ublk_frontend_contract",
         "tests/nbd_frontend_contract", "tests/vm/vm_hog")
PRELOAD = "tests/vm/libvm_huge_vram.so"
TOOLS = ("mkfs.ext4", "fsck.ext4", "fio", "strace")


def find_tool(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def require_tool(name):
    path = find_tool(name)
    if path is None:
        raise kernels.Unavailable(f"{name} is not installed; tools/install_deps.sh test installs it")
    return path


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.12", help=f"one of {', '.join(kernels.LINES)} (default 6.12)")
    parser.add_argument("--frontend", default="loop", help="for scenarios (default loop)")
    parser.add_argument("--build", default=REPOSITORY / "build/release", type=pathlib.Path, help="build folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    what.add_argument("--all", action="store_true", help="all scenarios, one after the other in one machine")
    what.add_argument("--command", help="shell command to run in the guest; its status is ours")
    what.add_argument("--interactive", action="store_true", help="a shell in the guest on this terminal; C-a x ends it")
    parser.add_argument("--results", type=pathlib.Path, metavar="FOLDER",
                        help="leave the scenarios' results there for check.py; the status says only whether it booted")
    parser.add_argument("--file", action="append", default=[], metavar="HOST:GUEST",
                        help="also into the guest; a program brings its libraries")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment in the guest")
    parser.add_argument("--word", action="append", default=[], help="word for the kernel's command line")
    parser.add_argument("--memory", type=int, metavar="MIB",
                        help=f"RAM of the guest, beside {VRAM_MIB} that play VRAM (default {SCENARIO_RAM_MIB} for "
                             f"scenarios, else {OTHER_RAM_MIB})")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--steady", action="store_true",
                        help="the guest's clock counts instructions, not time: for measurements on a busy host")
    parser.add_argument("--limit", type=int, default=600, metavar="S", help="seconds until the machine is ended")
    return parser.parse_args(arguments)


def chosen_scenarios(options):
    return SCENARIOS if options.all else options.scenario or []


def make_image(options, kernel, busybox, scratch):
    binary = options.build / "src/daemon/vramswap"
    if not binary.exists():
        sys.exit(f"there is no {binary}: build it, or name another build folder with --build")
    made = image.Image(scratch)
    made.add_program(busybox, "/bin/busybox")
    made.add_built(binary)
    made.add_kernel_modules(kernel)
    for path in (options.build / name for name in BUILT):
        if path.exists():
            made.add_built(path)
    if (options.build / PRELOAD).exists():
        made.add_built(options.build / PRELOAD, "/lib/libvm_huge_vram.so")
    for path in filter(None, map(find_tool, TOOLS)):
        made.add_program(path)
    for pair in options.file:
        source, _, name = pair.partition(":")
        made.add_program(source, name or None)
    words = [name for name in chosen_scenarios(options) if name != results.KERNEL_LOG]
    variables = [f"FRONTEND={options.frontend}", f"VM_VRAM_MIB={VRAM_MIB}", f"SCENARIOS={' '.join(words)}", *options.env]
    made.add_text("/vm/environment", "".join(f"export {shlex.quote(pair)}\n" for pair in variables))
    if options.command:
        made.add_text("/vm/command", options.command + "\n")
    return made


def boot(options, scratch):
    """A machine that is ready to start."""
    require_tool(machine.QEMU)
    busybox = require_tool("busybox")
    kernel = kernels.get_kernel(options.kernel)
    initramfs = scratch / "initramfs"
    make_image(options, kernel, busybox, scratch).write(initramfs)
    words = [f"hugepages={VRAM_MIB // 2}", *options.word]
    memory = options.memory or (SCENARIO_RAM_MIB if chosen_scenarios(options) else OTHER_RAM_MIB)
    if options.interactive:
        words.append("vm.shell")
    return machine.Machine(kernel, initramfs, scratch / "report", memory + VRAM_MIB, options.cpus, words, options.steady)


def run_command(options, vm):
    outcome = vm.run(options.limit, echo=True)
    print(f"\n{outcome.seconds:.0f} s{', ended by the limit' if outcome.timed_out else ''}", file=sys.stderr)
    status = re.search(r"^VM-STATUS (\d+)$", outcome.report, re.MULTILINE)
    return int(status.group(1)) if status else results.FAILED


def run_until_booted(options, vm):
    """Once more if the kernel gave up before our first program ran: emulated without KVM on a busy host, it may meet its own
    half-patched code (an int3 oops within the first seconds)."""
    outcome = vm.run(options.limit)
    if outcome.booted or outcome.timed_out or "Kernel panic" not in outcome.console:
        return outcome
    print(f"the kernel gave up while it booted; once more. Its console:\n{outcome.console}")
    return vm.run(options.limit)


def run_scenarios(options, vm):
    outcome = run_until_booted(options, vm)
    verdicts = results.judge(outcome, chosen_scenarios(options))
    words = {results.PASSED: "passed", results.SKIPPED: "skipped"}
    for name, verdict in verdicts.items():
        print(f"{name:<10} {words.get(verdict.status, 'FAILED'):<8} {verdict.seconds:6.1f} s")
        if options.results is None:
            print(verdict.text, end="")
    print(f"{outcome.seconds:.0f} s in all, {outcome.cpu_s:.0f} s of processors")
    if options.results is not None:
        results.write(options.results, verdicts, outcome)
        if not outcome.booted:
            print(outcome.console)
        return results.PASSED if outcome.booted else results.FAILED
    statuses = {verdict.status for verdict in verdicts.values()}
    return results.FAILED if results.FAILED in statuses else max(statuses)


def run(options, scratch):
    vm = boot(options, scratch)
    if options.interactive:
        return vm.interact()
    return run_command(options, vm) if options.command else run_scenarios(options, vm)


def main():
    options = parse(sys.argv[1:])
    if options.results is not None:  # nothing of an earlier run may be taken for this one's
        shutil.rmtree(options.results, ignore_errors=True)
        options.results.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory(prefix="vramswap-vm-") as scratch:
            return run(options, pathlib.Path(scratch))
    except kernels.Unavailable as reason:
        print(f"SKIPPED: vm.{options.kernel}.{options.frontend}: {reason}", flush=True)
        if options.results is not None:
            results.write_skip(options.results, str(reason))
        return results.SKIPPED


if __name__ == "__main__":
    sys.exit(main())
