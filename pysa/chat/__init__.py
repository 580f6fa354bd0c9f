"""A conversation with a model that has a chat template: turns, what the session holds of them, undo, edit, forgetting.

Nothing here prints; pysa.cli.chat does. `Conversation` is the front door.
"""

from pysa.chat.conversation import Conversation
from pysa.chat.renderer import Renderer, find_renderer
from pysa.chat.turn import Again, Dropped, Piece, Turn

__all__ = ["Again", "Conversation", "Dropped", "Piece", "Renderer", "Turn", "find_renderer"]
