"""highdicom's tables of what belongs into which object, loaded when this module is imported: 0.5 s.

highdicom itself loads them with the first object that it makes. A process of which workers are copies imports
this, so that they share them.
"""

from __future__ import annotations

from highdicom._standard_utils import get_module_attribute_map

get_module_attribute_map()
