from rkd_field.adr import Adr
from rkd_field.fair_ard import Fair, FairArd
from rkd_field.igdm import Igdm
from rkd_field.peeraid import PeerAid

from rkd.testing import OneStep, check_loss, check_scheduler, check_trains, tiny_run


def test_losses():
    for loss in (Igdm(), PeerAid(), FairArd(), Adr()):
        check_loss(loss)


def test_scheduler():
    check_scheduler(Fair(), terms=("kd",))


def test_they_train():
    for loss in (PeerAid(), Adr()):
        check_trains(tiny_run(loss, attack=OneStep()))
    halfway = tiny_run(Igdm(), attack=OneStep(), epochs=2)
    halfway.state.epoch = 1  # its weight is 0 at the start
    check_trains(halfway)
    check_trains(tiny_run(FairArd(), attack=OneStep(), schedulers={"field-fair": Fair()}))
