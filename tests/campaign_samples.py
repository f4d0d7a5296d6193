"""The state of a campaign that several tests start from."""

from foldfuse.campaign.planning.state import CampaignState
from foldfuse.recipes import load_recipe

RECIPE = load_recipe("efficientdet_lite0")


def standing(deadline=600.0, **changes):
    return CampaignState(
        **{
            "recipes": {"lite0": RECIPE},
            "sizes": (),
            "seed": 0,
            "deadline": deadline,
            "elapsed": 3.0,
            "num_held": 50,
            "num_target": 70,
        }
        | changes
    )
