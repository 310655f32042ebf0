"""Fetching an official archive: what is left behind, and what is said, when it does not work."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from dfkd.errors import UserError, reason

NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, RuntimeError)  # the last: torchvision's


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
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{name}: no space left under {root}; about {gigabytes} GB are needed") from error
        why = reason(getattr(error, "reason", None) or error)
        # Libraries tell of a damaged archive by whatever they stumble over; of the network, and of files, by these.
        if not (isinstance(error, NETWORK) or getattr(error, "errno", None)):
            archive = folder / url.rsplit("/", 1)[1]
            raise UserError(f"{name}: {archive} is not the official archive ({why})") from error
        raise UserError(
            f"{name}: cannot download ({why}); fetch {url}, put it into {folder} and run this again"
        ) from error
    shutil.rmtree(folder)
