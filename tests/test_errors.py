"""The user's error."""

import pickle

from ggm_image.errors import UserError


def test_user_error_survives_another_process():
    # seen to fail without __reduce__: a pool of processes then breaks and says nothing of what was wrong
    error = UserError("a rule", {"got": object}, "a fix")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert str(copy) == str(error)
    assert (copy.what, copy.fix) == ("a rule", "a fix")
