"""A loss of power, as far as it can be shown: of each file only what was synced is still there.

A library preloaded into a subprocess copies a file whenever it is synced. The subprocess commits, says what
was acknowledged, and is killed; then the copies are put in the files' place.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.sessions.stores.protocol import Image
from service.sessions.stores.sqlite import SqliteStore

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void keep(int fd) {
    char link[64], path[4096], copy[4200], buffer[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return;
    path[n] = 0;
    if (!strstr(path, "sessions.db")) return;
    snprintf(copy, sizeof copy, "%s.synced", path);
    int from = open(path, O_RDONLY), to = open(copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while ((n = read(from, buffer, sizeof buffer)) > 0)
        if (write(to, buffer, n) != n) _exit(9);
    close(from);
    close(to);
}

int fsync(int fd) { keep(fd); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { keep(fd); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""

WRITER = """
import asyncio, sys
from service.sessions.record import encode
from service.sessions.stores.protocol import Entry, Opening
from service.sessions.stores.sqlite import SqliteStore

async def main(path, durability, steps):
    store = SqliteStore(path, "m", lease_s=0.5)
    await store.join("http://127.0.0.1:1")
    image = await store.claim("a", Opening(60.0, durability, "1", "d"), 256)
    for step in range(steps):
        done = store.commit([Entry("a", image.epoch, step, step + 1, b"r%d" % step, durability == "fsync")])
        if done is not None:
            await done
        print(step + 1, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""
STEPS = 40


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler for the library that watches what is synced")
    place = tmp_path_factory.mktemp("shim")
    (place / "shim.c").write_text(SHIM)
    library = place / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, place / "shim.c", "-ldl"], check=True)
    return library


def acknowledged(path: Path, durability: str, shim: Path) -> int:
    """Steps that a process committed before it was killed and the power went."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), durability, str(STEPS)],
        stdout=subprocess.PIPE,
        text=True,
        env={"LD_PRELOAD": str(shim), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd())},
    )
    assert writer.stdout is not None
    for line in writer.stdout:
        count = int(line)
        if count == STEPS:
            break
    writer.kill()
    writer.communicate()
    for file in [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]:
        file.unlink(missing_ok=True)
        synced = file.with_name(file.name + ".synced")
        if synced.exists():
            synced.rename(file)
    return count


def kept(path: Path) -> int:
    """Steps of the session that are still there; 0 if it is not."""

    async def look() -> int:
        store = SqliteStore(str(path), "m", lease_s=0.5)
        await store.join("http://127.0.0.1:2")
        for _ in range(60):
            found = await store.claim("a", None, 256)
            if isinstance(found, Image):
                await store.close()
                assert found.records == [b"r%d" % step for step in range(found.next_step)]
                return found.next_step
            await asyncio.sleep(0.05)
        await store.close()
        return 0

    return asyncio.run(look())


def test_fsync_loses_no_acknowledged_step(tmp_path: Path, shim: Path) -> None:
    path = tmp_path / "sessions.db"
    assert acknowledged(path, "fsync", shim) == STEPS
    assert kept(path) == STEPS


def test_journal_may_which_shows_that_the_power_was_cut(tmp_path: Path, shim: Path) -> None:
    path = tmp_path / "sessions.db"
    assert acknowledged(path, "journal", shim) == STEPS
    assert not path.exists() or kept(path) < STEPS
