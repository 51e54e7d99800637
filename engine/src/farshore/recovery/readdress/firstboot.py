"""A Windows guest's new addresses: a script that it runs once, when it starts. Pure.

Windows ties addresses to devices that it has seen, and the target's are new to it: they can only be given from within.
"""

from __future__ import annotations

from collections.abc import Sequence

from farshore.model.guest import GuestNic
from farshore.recovery.readdress.interface import Target

FOLDER = "/Farshore"
SERVICE = "FarshoreFirstBoot"
_HEAD = r"""$ErrorActionPreference = 'Continue'
$log = 'C:\Farshore\firstboot.log'
function Say($text) { "$(Get-Date -Format o) $text" | Out-File -FilePath $log -Append -Encoding utf8 }
function Adapter($mac) {
    for ($i = 0; $i -lt 60; $i++) {
        $found = Get-NetAdapter | Where-Object { $_.MacAddress -eq $mac }
        if ($found) { return $found }
        Start-Sleep -Seconds 2
    }
    Say "no adapter $mac"
}
function Give($mac, $address, $prefix, $gateway, $servers) {
    $adapter = Adapter $mac
    if (-not $adapter) { return }
    $index = $adapter.ifIndex
    Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Disabled
    Get-NetIPAddress -InterfaceIndex $index -AddressFamily IPv4 -ErrorAction SilentlyContinue |
        Remove-NetIPAddress -Confirm:$false
    Get-NetRoute -InterfaceIndex $index -DestinationPrefix 0.0.0.0/0 -ErrorAction SilentlyContinue |
        Remove-NetRoute -Confirm:$false
    $more = @{}
    if ($gateway) { $more.DefaultGateway = $gateway }
    New-NetIPAddress -InterfaceIndex $index -IPAddress $address -PrefixLength $prefix @more | Out-Null
    if ($servers) { Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $servers }
    Say "$mac has $address/$prefix"
}
"""
_TAIL = r"""& sc.exe delete FarshoreFirstBoot | Out-Null
Say 'done'
"""
_COMMAND = (
    "@echo off\r\n"
    "powershell.exe -NoProfile -ExecutionPolicy Bypass -File C:\\Farshore\\firstboot.ps1"
    " >> C:\\Farshore\\firstboot.log 2>&1\r\n"
)


def command() -> bytes:
    """Return what the service starts."""
    return _COMMAND.encode()


def script(targets: Sequence[tuple[GuestNic, Target]], hostname: str | None) -> bytes:
    """Return the script that gives interfaces their addresses, and the machine its name.

    Everything in it that comes from a plan is an address, a hardware address or a host name, and was checked as such.
    """
    lines = [_HEAD]
    for nic, target in targets:
        mac = nic.mac.upper().replace(":", "-")
        gateway = f"'{target.gateway}'" if target.gateway else "$null"
        servers = ", ".join(f"'{server}'" for server in target.dns)
        prefix = target.address.network.prefixlen
        lines.append(f"Give '{mac}' '{target.address.ip}' {prefix} {gateway} @({servers})\n")
    if hostname is not None:
        lines.append(f"Rename-Computer -NewName '{hostname}' -Force\nSay 'is called {hostname}'\n")
    lines.append(_TAIL)
    return "".join(lines).replace("\n", "\r\n").encode()
