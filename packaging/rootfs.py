"""What goes into an image: files of this machine's Debian packages, programs with the libraries that they load, and
files made here. It keeps count of the Debian packages, for the SBOM; their licence texts come along."""

import functools
import glob
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass

MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr, as on Debian since 12
UNUSED = re.compile(r"^/usr/share/(doc|man|info|locale|lintian|bash-completion|bug|applications|pixmaps)/|^/etc/"
                    r"|/__pycache__/|\.py[co]$|/test/|/idlelib/|/lib2to3/|/ensurepip/|/pydoc_data/|/config-3")


@dataclass(frozen=True)
class Entry:
    """One file, folder or link: exactly one of source, data and link says what, none of them means a folder."""

    mode: int
    source: str | None = None
    data: bytes | None = None
    link: str | None = None


def _in_usr(path):
    top = path.strip("/").split("/", 1)[0]
    return "/usr" + path if top in MERGED else path


def _elf(path):
    with open(path, "rb") as source:
        return source.read(4) == b"\x7fELF"


@functools.lru_cache(None)
def libraries(path):
    """What the dynamic linker loads for a program or library, as paths of this machine."""
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    if "not found" in done.stdout:
        raise RuntimeError(f"{path} needs libraries that are not installed:\n{done.stdout}")
    return tuple(re.findall(r"(/\S+) \(0x", done.stdout))


@functools.lru_cache(None)
def _owners():
    """Every file of an installed Debian package, read from dpkg's own lists: a query for each file takes seconds."""
    owners = {}
    for path in glob.glob("/var/lib/dpkg/info/*.list"):
        package = os.path.basename(path).removesuffix(".list").split(":")[0]
        with open(path, encoding="utf-8") as listing:
            owners.update((line, package) for line in listing.read().splitlines())
    return owners


def package_of(path):
    """The Debian package that a file belongs to. dpkg knows a file by one of its two names on a merged /usr."""
    for name in (path, os.path.realpath(path)):
        for known in (name, "/usr" + name, name.removeprefix("/usr")):
            if known in _owners():
                return _owners()[known]
    raise RuntimeError(f"{path} belongs to no Debian package: install the library from Debian")


class Rootfs:
    """The tree of an image: target path to Entry."""

    def __init__(self):
        self.entries = {}
        self.packages = set()
        for name in MERGED:
            self.folder(f"/usr/{name}")
            self.entries[f"/{name}"] = Entry(0o777, link=f"usr/{name}")
        for name in ("/dev", "/etc", "/proc", "/run", "/sys", "/var"):
            self.folder(name)
        self.folder("/tmp", 0o1777)

    def folder(self, target, mode=0o755):
        parent = os.path.dirname(target)
        if parent not in ("/", "") and parent not in self.entries:
            self.folder(parent)
        self.entries[target] = Entry(mode)

    def text(self, target, text, mode=0o644):
        self._parent(target)
        self.entries[target] = Entry(mode, data=text.encode())

    def link(self, target, to):
        self._parent(target)
        self.entries[_in_usr(target)] = Entry(0o777, link=to)

    def _parent(self, target):
        parent = os.path.dirname(_in_usr(target))
        if parent != "/" and parent not in self.entries:
            self.folder(parent)

    def file(self, target, source, mode=None):
        """A copy of a file of this machine (links are followed), as it is."""
        target = _in_usr(target)
        self._parent(target)
        self.entries[target] = Entry(stat.S_IMODE(os.stat(source).st_mode) if mode is None else mode, source=source)

    def _debian(self, path):
        """A file of a Debian package; the package is noted and its licence text comes along."""
        package = package_of(path)
        self.packages.add(package)
        if os.path.exists(copyright := f"/usr/share/doc/{package}/copyright"):
            self.file(copyright, copyright)
        self.file(path, path)

    def program(self, source, target=None):
        """A program with every library that it loads; without target it is one of a Debian package."""
        if target:
            self.file(target, source, 0o755)
        else:
            self._debian(source)
        for library in libraries(source):
            if _in_usr(library) not in self.entries:
                self._debian(library)

    def package(self, name):
        """All that an installed Debian package brings, but for documentation, configuration and test suites."""
        listing = subprocess.run(["dpkg-query", "-L", name], capture_output=True, text=True, check=True).stdout
        self.packages.add(name)
        for path in listing.splitlines():
            if UNUSED.search(path) or (os.path.isdir(path) and not os.path.islink(path)):
                continue
            if os.path.islink(path):
                self.link(path, os.readlink(path))
            elif os.path.isfile(path):
                self.file(path, path)
                if _elf(path):
                    for library in libraries(path):
                        if _in_usr(library) not in self.entries:
                            self._debian(library)
        if os.path.exists(copyright := f"/usr/share/doc/{name}/copyright"):
            self.file(copyright, copyright)

    def unpack(self, folder):
        """Writes the tree into a folder, for tools that make their own layers."""
        for target, entry in sorted(self.entries.items()):
            path = f"{folder}{target}"
            if entry.link is not None:
                os.symlink(entry.link, path)
                continue
            if entry.source is not None:
                shutil.copyfile(entry.source, path)
            elif entry.data is not None:
                with open(path, "wb") as out:
                    out.write(entry.data)
            else:
                os.makedirs(path, exist_ok=True)
            os.chmod(path, entry.mode)

    def user(self, name, number):
        """A user and group that programs may run as, beside root."""
        self.text("/etc/passwd", f"root:x:0:0:root:/:/sbin/nologin\n{name}:x:{number}:{number}:{name}:/:/sbin/nologin\n")
        self.text("/etc/group", f"root:x:0:\n{name}:x:{number}:\n")
        self.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
