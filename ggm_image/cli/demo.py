"""The `demo` command."""

import click

from ggm_image.cli.options import GroupedCommand, device_option, how, own_device, what, where
from ggm_image.cli.sampling import find_described_model, shipped_model_option
from ggm_image.web.server import PORT, check_address, serve


@click.command(cls=GroupedCommand)
@what(shipped_model_option("robots64"))
@how(device_option)
@where(
    click.option("--port", type=click.IntRange(0, 65535), default=PORT, help="0 takes a free port."),
    click.option("--listen", metavar="ADDRESS", default="127.0.0.1", help="IP address to listen on."),
    click.option(
        "--auth",
        metavar="USER:PASSWORD",
        envvar="GGM_IMAGE_AUTH",
        help="User and password to ask for; GGM_IMAGE_AUTH by default.",
    ),
)
def demo(model_name: str, port: int, listen: str, auth: str | None, device: str | None) -> None:
    """Open a page in the browser to sample, inpaint with a brush, and see the signal map.

    Needs `pip install 'ggm-image[demo]'`. The page is for this machine only; --listen with another address than a
    loopback one needs --auth. It works without a network and sends nothing to other hosts. Ctrl-C ends it.
    """
    check_address(listen, auth)
    find_described_model(model_name)
    serve(model_name, device=own_device(device), listen=listen, port=port, auth=auth)
