# SPDX-License-Identifier: MIT
"""Debian kernels for the VM tests: found, fetched and unpacked by apt's own client, kept in a cache.

The machine's own package sources say where Debian is; only the suites are added, in a private apt state. A kernel that is
in the cache needs no network."""
import contextlib
import fcntl
import glob
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

# A line of kernels -> nothing but its name; the newest package of the line is taken. New lines need no other change.
LINES = ("6.1", "6.12", "7.3")
SUITES = "bookworm bookworm-updates bookworm-backports trixie trixie-backports"

# What guests may load; what a kernel has built in or lacks is passed over. Dependencies follow.
MODULES = ("loop", "fuse", "nbd", "ublk_drv", "zram", "brd", "ext4", "crc32c_generic", "crc32c_intel", "lzo_rle", "lzo",
           "zstd", "lz4")


class Unavailable(Exception):
    """The kernel can neither be fetched nor is it in the cache: the tests with it are skipped."""


class Kernel:
    """An unpacked kernel: `image`, `release` (uname -r) and `modules` ({path below /lib/modules/RELEASE: file})."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.image = self.folder / "vmlinuz"
        self.release = (self.folder / "release").read_text(encoding="ascii").strip()

    @property
    def modules(self):
        below = self.folder / "modules"
        return {str(path.relative_to(below)): path for path in sorted(below.rglob("*")) if path.is_file()}


def cache_folder():
    return pathlib.Path(os.environ.get("VRAMSWAP_VM_CACHE") or pathlib.Path.home() / ".cache" / "vramswap-vm")


@contextlib.contextmanager
def locked(folder):
    """Two test runs may want the same kernel at once: the second waits for the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get_kernel(line, refresh=False):
    """The newest kernel of a line, from the cache if it is there. Raises Unavailable."""
    if line not in LINES:
        raise Unavailable(f"no kernel line '{line}'; there are {', '.join(LINES)}")
    cache = cache_folder()
    folder = cache / "kernels" / line
    with locked(cache):
        if refresh or not (folder / "release").exists():
            _fetch(line, folder, cache)
    return Kernel(folder)


def _fetch(line, folder, cache):
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no kernel {line} in the cache and no {tool} to fetch one")
    apt = _Apt(cache / "apt")
    package = _newest(apt.kernel_packages(line))
    if package is None:
        raise Unavailable(f"the package sources have no kernel {line}, or cannot be reached")
    print(f"fetching {package}", flush=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        unpacked = pathlib.Path(scratch) / "root"
        for part in apt.parts(package):
            subprocess.run(["dpkg-deb", "-x", apt.download(part, scratch), unpacked], check=True)
        chosen = pathlib.Path(scratch) / "chosen"
        _choose(unpacked, chosen)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(chosen, folder)


class _Apt:
    """apt with sources, lists and caches of its own; keys, proxies and certificates are the machine's."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sources = folder / "vm.sources"
        sources.write_text("\n".join(_stanzas()), encoding="utf-8")
        self.options = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache",
                        f"-oDir::Etc::SourceList={sources}", f"-oDir::Etc::SourceParts={folder}/parts",
                        "-oAPT::Get::List-Cleanup=false", "-oAPT::Architecture=amd64"]
        if os.geteuid() == 0:
            self.options.append("-oAPT::Sandbox::User=root")  # the cache may be in a folder of root's alone
        self._call("apt-get", "update", "-qq")  # lists that cannot be had now may be there from before

    def kernel_packages(self, line):
        names = self._call("apt-cache", "search", "--names-only", rf"^linux-image-{re.escape(line)}\.").stdout
        return re.findall(rf"^(linux-image-{re.escape(line)}\.\S*?amd64(?:-unsigned)?) ", names, re.MULTILINE)

    def parts(self, package):
        """The package, and those that image and modules were split into (Linux 7.x)."""
        depends = re.search(r"^Depends: (.*)$", self._call("apt-cache", "show", package).stdout, re.MULTILINE)
        return [package, *re.findall(r"\blinux-(?:binary|modules)-\d\S*", depends.group(1) if depends else "")]

    def download(self, package, folder):
        done = self._call("apt-get", "download", "-qq", package, cwd=folder)
        files = glob.glob(f"{glob.escape(folder)}/{glob.escape(package)}_*.deb")
        if done.returncode != 0 or not files:
            raise Unavailable(f"{package} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        return files[0]

    def _call(self, tool, *arguments, cwd=None):
        return subprocess.run([tool, *self.options, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def _stanzas():
    """The machine's Debian archive, with the suites that have our kernels; its other Debian sources as they are."""
    archive = None
    for uri, suites, signed_by in _configured_sources():
        if archive is None and re.search(r"\b(bookworm|trixie|stable|testing|sid)(\s|$)", suites):
            archive = uri
            yield _stanza(uri, SUITES, signed_by)
        elif "-security" in suites:
            yield _stanza(uri, suites, signed_by)
    if archive is None:
        raise Unavailable("the package sources of this machine name no Debian archive")


def _stanza(uri, suites, signed_by):
    key = f"Signed-By: {signed_by}\n" if signed_by else ""
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{key}"


def _configured_sources():
    """(uri, suites, keyring) of each binary source, from both formats of sources.list(5)."""
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except OSError:
            continue
        if path.endswith(".sources"):
            for stanza in re.split(r"\n\s*\n", text):
                field = dict(re.findall(r"^([\w-]+):[ \t]*(\S.*)$", stanza, re.MULTILINE))
                if field.get("Enabled", "yes") == "yes" and "URIs" in field:
                    yield field["URIs"].split()[0], field.get("Suites", ""), field.get("Signed-By", "")
        elif path.endswith(".list"):
            for options, uri, suite in re.findall(r"^deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
                keyring = re.search(r"signed-by=(\S+)", options)
                yield uri, suite, keyring.group(1) if keyring else ""


def _newest(packages):
    """The highest version; of equal ones the signed package. No real-time or cloud flavours."""
    plain = [p for p in packages if re.fullmatch(r"linux-image-[\d.]+(-\d+)?(\+deb[\d.]+)?-amd64(-unsigned)?", p)]
    return max(plain, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.split("-amd64")[0])],
                                     not p.endswith("-unsigned")), default=None)


def _choose(unpacked, chosen):
    """Takes the image and the modules we want, unpacked, with the lists that modprobe reads."""
    root = next(path for usr in ("lib", "usr/lib") for path in (unpacked / usr / "modules").glob("*"))
    release = root.name
    image = next(path for path in (unpacked / "boot" / f"vmlinuz-{release}", root / "vmlinuz") if path.exists())
    target = chosen / "modules"
    target.mkdir(parents=True)
    shutil.copy(image, chosen / "vmlinuz")
    files = {_module_name(path): path for path in root.rglob("*.ko*")}
    wanted, depends, aliases = {}, [], []
    queue = [name for name in MODULES if name in files]
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        path = files[name]
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        info = re.findall(rb"(depends|alias)=([ -~]*)\0", content)
        needs = [n.decode().replace("-", "_") for key, value in info if key == b"depends" for n in value.split(b",") if n]
        aliases += [f"alias {value.decode()} {name}\n" for key, value in info if key == b"alias"]
        wanted[name] = (_plain_path(root, path), needs)
        queue += [n for n in needs if n in files]
        place = target / wanted[name][0]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for path, needs in wanted.values():
        depends.append(f"{path}: {' '.join(wanted[n][0] for n in _all_needs(needs, wanted))}\n")
    (target / "modules.dep").write_text("".join(sorted(depends)), encoding="ascii")
    (target / "modules.alias").write_text("".join(sorted(aliases)), encoding="ascii")
    (chosen / "release").write_text(release + "\n", encoding="ascii")


def _all_needs(needs, wanted):
    """Every module needed, nearest first, as modules.dep lists them."""
    order = []
    for need in needs:
        if need in wanted:
            order = [n for n in order if n != need] + [need]
            for below in _all_needs(wanted[need][1], wanted):
                order = [n for n in order if n != below] + [below]
    return order


def _module_name(path):
    return path.name.split(".ko")[0].replace("-", "_")


def _plain_path(root, path):
    return str(path.relative_to(root)).removesuffix(".xz")
