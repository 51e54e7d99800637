"""What readers of file systems raise when the bytes are not what they were said to be."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from dissect.btrfs.exceptions import Error as BtrfsError
from dissect.extfs.exceptions import Error as ExtError
from dissect.fat.exceptions import Error as FatError
from dissect.ntfs.exceptions import Error as NtfsError
from dissect.regf.exceptions import Error as HiveError
from dissect.volume.exceptions import Error as VolumeError
from dissect.xfs.exceptions import Error as XfsError

#: Parsers of foreign bytes fail in any of these ways; what they were asked for is then not readable.
BROKEN: Final = (
    BtrfsError,
    ExtError,
    FatError,
    HiveError,
    NtfsError,
    VolumeError,
    XfsError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
