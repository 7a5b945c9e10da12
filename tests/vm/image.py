# SPDX-License-Identifier: MIT
"""The guest's root file system: an initramfs with busybox, the programs under test and all they need to run.

It is an uncompressed cpio archive ("newc"), since unpacking costs more time in an emulated machine than loading."""
import os
import pathlib
import re
import shutil
import stat
import subprocess

GUEST_FOLDER = pathlib.Path(__file__).parent / "guest"
FOLDERS = ("bin", "sbin", "dev", "proc", "sys", "tmp", "run", "mnt", "etc", "lib", "lib64", "usr", "root", "vm", "var/lib")


class Archive:
    """A cpio archive in the making. Folders above a file appear by themselves."""

    def __init__(self, path):
        self._out = open(path, "wb")  # pylint: disable=consider-using-with
        self._folders = set()
        self._inode = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._entry("TRAILER!!!", 0, b"")
        self._out.close()

    def folder(self, name):
        name = str(name).strip("/")
        if name and name not in self._folders:
            self.folder(os.path.dirname(name))
            self._folders.add(name)
            self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name, content, mode=0o644):
        self.folder(os.path.dirname(name))
        self._entry(name.strip("/"), stat.S_IFREG | mode, content)

    def link(self, name, target):
        self.folder(os.path.dirname(name))
        self._entry(name.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def device(self, name, major, minor):
        self.folder(os.path.dirname(name))
        self._entry(name.strip("/"), stat.S_IFCHR | 0o600, b"", (major, minor))

    def _entry(self, name, mode, content, device=(0, 0)):
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        for part in (header, content):
            self._out.write(part + b"\0" * (-len(part) % 4))


class Image:
    """Collects files by their path in the guest; programs bring the shared libraries that ldd names."""

    def __init__(self, scratch):
        self._scratch = scratch
        self._files = {}
        self._texts = {}

    def add_file(self, source, name):
        self._files[name] = pathlib.Path(source)

    def add_built(self, source, name=None):
        """A program of the build, without what only debuggers read: the guest's RAM is small."""
        source = pathlib.Path(source)
        self.add_program(source, name)
        if shutil.which("strip"):
            stripped = self._scratch / source.name
            subprocess.run(["strip", "-o", stripped, source], check=True)
            self.add_file(stripped, name or f"/bin/{source.name}")

    def add_text(self, name, text):
        self._texts[name] = text

    def add_program(self, source, name=None):
        source = pathlib.Path(source)
        self.add_file(source, name or f"/bin/{source.name}")
        # Not a dynamic program, or not for this machine: nothing to bring.
        listed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(?:=>\s*|^\s*)(/\S+) \(0x", listed, re.MULTILINE):
            self.add_file(library, library)

    def add_kernel_modules(self, kernel):
        for name, path in kernel.modules.items():
            self.add_file(path, f"/lib/modules/{kernel.release}/{name}")

    def write(self, path):
        with Archive(path) as archive:
            for folder in FOLDERS:
                archive.folder(folder)
            archive.device("dev/console", 5, 1)
            archive.link("bin/sh", "busybox")
            for script in sorted(GUEST_FOLDER.rglob("*.sh")):
                archive.file(f"vm/{script.relative_to(GUEST_FOLDER)}", script.read_bytes(), 0o755)
            archive.link("init", "vm/init.sh")
            for name, text in self._texts.items():
                archive.file(name, text.encode())
            for name, source in self._files.items():
                archive.file(name, source.read_bytes(), 0o755 if os.access(source, os.X_OK) else 0o644)
