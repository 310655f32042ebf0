"""Fetching an official archive: what is left behind, and what is said, when it does not work."""

from __future__ import annotations

import errno
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dfkd.errors import UserError


@contextmanager
def downloading(name: str, root: Path, url: str, gigabytes: float) -> Iterator[Path]:
    """The folder `<root>/<name>/download` for the archive of `url`, gone when the block ends well.

    An archive that lay there before stays when the block fails; what the block itself began goes. `gigabytes` is the
    space that is needed. Raises UserError without network or space, and for a file that is not the archive.
    """
    folder = Path(root) / name / "download"
    ours = not folder.exists()
    try:
        yield folder
    except BaseException as error:
        if ours:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()  # where there is nothing else of this data set
        if isinstance(error, KeyError | zipfile.BadZipFile):
            archive = folder / url.rsplit("/", 1)[1]
            raise UserError(f"{name}: {archive} is not the official archive ({error})") from error
        if not isinstance(error, OSError | RuntimeError) or isinstance(error, UserError):
            raise
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{name}: no space left under {root}; about {gigabytes} GB are needed") from error
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{name}: cannot download ({reason}); fetch {url}, put it into {folder} and run this again"
        ) from error
    shutil.rmtree(folder)
