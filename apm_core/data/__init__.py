from apm_core.data.dataset import Dataset as Dataset
from apm_core.data.dataset import Split as Split
from apm_core.data.dataset import hold_out as hold_out
from apm_core.data.doctor import examine as examine
from apm_core.data.request import channel_constants as channel_constants
from apm_core.data.request import public_size as public_size
from apm_core.data.request import read as read
