"""Names of members in TTA views, as files hold them."""

from foldfuse.ensemble.member_views import MemberView


def test_a_name_is_cut_at_its_last_at_sign():
    assert MemberView.parse("base@256@1+hflip") == MemberView("base@256", "1+hflip")
    assert str(MemberView("base", "1")) == "base@1"
    assert [MemberView.parse(name) for name in ("base", "@1", "base@", "")] == [None] * 4
