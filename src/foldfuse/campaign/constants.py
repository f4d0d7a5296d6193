"""Every constant of the campaign, with its reason. Seconds, pixels and shares of a time are named as such."""

from __future__ import annotations

from foldfuse.inference.tta import parse_views

# time of a campaign
MIN_DEADLINE = 60.0  # seconds: less does not suffice to train, predict with and submit even one member
MARGIN_SHARE, MAX_MARGIN_SECONDS = 0.01, 6.0  # of the deadline, kept free at its end for surprises
DELIVERY_SECONDS = 5.0  # for the last submission and the report, until one was measured
SEGMENT_OVERHEAD = 4.0  # seconds a segment, until measured: loading, checkpoints, an early choice of the ensemble
# a measured time may be longer the next time by this factor, and by these seconds
RESERVE_SAFETY, RESERVE_SECONDS = 1.25, 0.3
# of training, and of the deadline: a shorter extra cooldown run adds little
MIN_EXTRA_SECONDS, MIN_EXTRA_SHARE = 15.0, 0.04
THREADS_SECONDS = 10.0  # after which the number of threads is measured anew before a piece of work
RETRY_THREADS_SECONDS = 30.0  # after which a training tries more threads again, where it has few
MIN_REPLANNED_SHARE = 0.03  # of a segment's time: a smaller change is not made
KEPT_SHARE = 0.75  # of a training's time, which is not given up for TTA views on a machine that became slower
MAX_SEARCH_FACTOR = 3.0  # by which the last search may be longer than planned, where nothing else needs the time
COMPILE_WAIT_SHARE = 0.25  # of the deadline: a campaign waits no longer for compiled loops before it trains
MEASURING_SHARE = 0.08  # of the deadline: measuring a cost may take as long
MIN_MEASURING_SECONDS = 8.0  # that measuring takes on two slow cores: with less time, usual costs are taken
LATEST_MEASURING_SHARE = 0.25  # of the deadline, after which nothing is measured: the machine is busy
DEFAULT_STEP_SECONDS = 0.6  # of a training step at 320 px on two slow cores, where it is not measured
TRAINING_SHARE = 0.7  # of the deadline that goes into training, as observed; decides how many segments are planned

# schedule of the segments
IMAGE_SCALES = (0.8, 1.0, 1.2)  # image sizes of a base run and its cooldown runs, relative to that of the recipe
SCALE_STEP = 0.2  # added to the scale in each round, where several base runs are compared
MIN_IMAGE_SIZE = 128  # pixels: smaller images do not show the objects
MIN_BATCH_SIZE = 4  # images of a segment at a large image size: batch norm's statistics of fewer are too noisy
SINGLE_BASE_SHARE = 0.5  # of the training time for a base run without rivals; its cooldown runs share the rest equally
BASE_SHARE, EXTENDED_SHARE, COOLDOWN_SHARE = 0.15, 0.4, 0.45  # of the training time, where base runs are compared
COMPARE_DEADLINE = 900.0  # seconds: below, measuring the candidates costs more than a comparison brings
MIN_COMPARED_STEPS = 300  # optimizer steps of a base run, below which its score says little
MIN_COMPARED = 3  # base runs: fewer are not worth comparing
# folds on whose held-out images base runs are compared: each costs the base runs that are not promoted once more
COMPARED_FOLDS = 2
MIN_PROMOTED = 2  # base runs that may be promoted, however few there are
MIN_COOLDOWNS, MAX_COOLDOWNS = 2, 4  # cooldown runs of one base or extended run
MIN_COOLDOWN_SECONDS = 480.0  # of training: with less for each there are only MIN_COOLDOWNS
COOLDOWN_MOSAIC_END = 0.4  # share of a cooldown run after which it sees whole images, as at test time
MIN_SOUP_DEADLINE = 300.0  # seconds: below, the predictions of a soup cost more training than it is worth
MIN_SEGMENT_SECONDS = 5.0  # of training: a segment with less is not started
FOLD_COUNTS = (1, 2, 3, 5)  # of folds that are trained
# steps of base runs in the time of each of two folds, and of each of more: two with 730 gained (by a measured step, which varies
# by a fifth from one measurement to the next), three with 680 to 850 did not
MIN_FOLD_STEPS, MIN_STEPS_OF_MANY = 500, 1000
# a base run of fewer steps learns fast where the class loss of its last quarter is below this share of the second quarter's
MAX_LEARNING_STEPS, LEARNING_LOSS = 500, 0.75
# of the training time, for the extended run of such a base run, beside the shares of cooldown runs
EXTENDED_BASE_SHARE = 0.3
EXTENDED_SEED = 500  # of it, beyond the numbers of cooldown runs
SHORT_FOLD_SECONDS = 60.0  # of training for each fold that was asked for: below, the log says so
MIN_FOLDS_DEADLINE = 300.0  # seconds: below, one fold is trained, and no step is measured for it
MAX_CHECKPOINTS = 40  # within the deadline: more would cost more time than they save
MIN_CHECKPOINT_SECONDS = 10.0  # between checkpoints
MAX_ATTEMPTS = 3  # at a segment whose workers are lost
MAX_LR_CUTS = 2  # of a segment whose loss is not finite, before its last checkpoint is taken
DIVERGED_LR = 0.3  # times its learning rate, after each

# candidates where the user names none
CPU_RECIPES = ("lite0_fpn", "lite1_fpn", "yolov5n")  # cheap detectors with different backbones
CARD_RECIPES = ("lite0_fpn", "dfine_n", "dfine_s", "lite1_fpn", "fcos_r50", "yolov5n")  # as far as they are at hand
UNFROZEN_BACKBONE_LR_MULT = 0.3  # of the backbone's learning rate, where its first stages are trained too
CARD_MIN_AUTO, CARD_MAX_AUTO = 512, 1024  # pixels: bounds of an image size chosen from the data; not measured on cards

# prediction
VIEWS = parse_views(["1", "1+hflip", "1.25"])  # TTA views in the order of their gain per second
TILED_VIEWS = parse_views(["1", "1+hflip", "1+tiles2x2"])  # the same for large images with small objects
PLAIN_VIEW = VIEWS[0]
EXTRA_VIEWS = parse_views(["1.25+hflip", "0.8"])  # for time that is left at the end; their gain was not measured
MAX_PREDICTION_SHARE = 0.3  # of the deadline: predictions that would take more are made in fewer views
DEFAULT_PIXEL_SECONDS = 0.03 / 256**2  # seconds of one pixel's prediction on one slow core, until measured
PREDICTION_SAFETY = 1.2  # by which a prediction may take longer than a few images showed
WARM_UP_IMAGES = 16  # that a card predicts before its time is measured
CACHE_MARGIN = 1.1  # decoded images are larger than the largest image size by this, for scale jitter

# ensemble and crop rescoring
LIGHT_WEIGHT = 0.05  # of all weights: a member with less gets no time for further views of the test images
FIRST_SEARCH_SECONDS = 2.0  # for an ensemble that a later member may change
SEARCH_SHARE, MIN_SEARCH_SECONDS, MAX_SEARCH_SECONDS = 0.012, 3.0, 60.0  # for the last choice of the ensemble
MAX_METRIC_SHARE = 1 / 2000  # of the deadline, for a call of the user's own metric: crop rescoring makes some 200 calls
RESCORING_TRAIN_CROPS = 1500  # crops of annotated objects that the classifier trains on
# detections of an image that are rescored, by score: so many for each object that an image has on the mean, within bounds
CROPS_PER_OBJECT, MIN_CROPS_PER_IMAGE, MAX_CROPS_PER_IMAGE = 4, 12, 30
RESCORING_CROP_SECONDS = 0.005  # on one core
WARM_UP_CROPS, MEASURED_CROPS = 32, 96  # of the latter, of objects and of detections, the time is measured
CROP_SAFETY = 1.2  # by which crop rescoring may take longer than these showed
# of the deadline: crop rescoring that would take more is left out; with little time it gains more, since detectors tell classes
# apart late: up to 30 s it may take the second share
MAX_RESCORING_SHARE, SHORT_RESCORING_SHARE, SHORT_RESCORING_SECONDS = 0.1, 0.15, 30.0
# AP50 that wrong classes cost on the held-out images, below which boxes are not rescored: on blood cells (0.006 and less) and
# cards after ten minutes (0.01) rescoring gained 0 to 0.010 AP50 for 10 to 30 s, on litter (0.1 to 0.2) and cards after three
# minutes (0.3) a fifth and more of the AP50
MIN_CLASS_ERROR_COST = 0.02
RESCORING_PACE_SHARE = 0.1  # of the rescorer's training, after which its pace says something
# of the remaining time, by which crop rescoring may seem too slow when little of it is done: it was given up after 3.5 s of a
# planned 16, with 23 left, in a campaign where it would have gained 0.04 AP
EARLY_PACE_TOLERANCE = 0.5
PACE_SHARE = 0.1  # of a prediction, after which its pace can be trusted

# checks of the input
MAX_UNDECODABLE_SHARE = 0.1  # of the images; more broken images point to another mistake
MAX_UNDECODABLE = 3  # images that may always be broken, however few there are
# of AP50 between two folds of external predictions: a larger one looks like a model that has learnt the images of one of them
MAX_EXTERNAL_GAP = 0.1
MIN_EXTERNAL_COVERAGE = 0.5  # of the held-out images with objects: external predictions must find something there

# workers
POLL_SECONDS = 1.0  # between two looks at asynchronous workers
REACH_SECONDS = 5.0  # for a Ray head node to answer
FIRST_WORKER_SECONDS = 300.0  # for a first worker to be ready; half of the deadline where that is less
CLOSE_SECONDS = 5.0  # for workers to clean up
CHUNK_BYTES = 64 * 2**20  # of image files sent at a time
CHECKPOINT_POLL_SECONDS = 0.2  # between two looks for a new checkpoint on a node
