"""Where countries are, to a tenth of a degree, so that a device is served by the nearest region of relays.

A country is the place of its main time zone (of several zones: of its largest city, for the United States the middle one).
Source: `zone.tab` of the time zone database, release 2025b, in the public domain. Small and coarse on purpose: an operator
who knows better names the countries of a region.
"""

from math import asin, cos, radians, sin, sqrt
from typing import Final, NamedTuple

EARTH_RADIUS_KM: Final = 6371.0


class Place(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


_TABLE: Final = """
ad 42.5 1.5, ae 25.3 55.3, af 34.5 69.2, ag 17.1 -61.8, ai 18.2 -63.1, al 41.3 19.8, am 40.2 44.5,
ao -8.8 13.2, aq -77.8 166.6, ar -34.6 -58.5, as -14.3 -170.7, at 48.2 16.3, au -33.9 151.2, aw 12.5 -70,
ax 60.1 19.9, az 40.4 49.9, ba 43.9 18.4, bb 13.1 -59.6, bd 23.7 90.4, be 50.8 4.3, bf 12.4 -1.5,
bg 42.7 23.3, bh 26.4 50.6, bi -3.4 29.4, bj 6.5 2.6, bl 17.9 -62.9, bm 32.3 -64.8, bn 4.9 114.9,
bo -16.5 -68.2, bq 12.2 -68.3, br -23.5 -46.6, bs 25.1 -77.3, bt 27.5 89.7, bw -24.6 25.9, by 53.9 27.6,
bz 17.5 -88.2, ca 43.6 -79.4, cc -12.2 96.9, cd -4.3 15.3, cf 4.4 18.6, cg -4.3 15.3, ch 47.4 8.5, ci 5.3 -4,
ck -21.2 -159.8, cl -33.5 -70.7, cm 4 9.7, cn 31.2 121.5, co 4.6 -74.1, cr 9.9 -84.1, cu 23.1 -82.4,
cv 14.9 -23.5, cw 12.2 -69, cx -10.4 105.7, cy 35.2 33.4, cz 50.1 14.4, de 52.5 13.4, dj 11.6 43.1,
dk 55.7 12.6, dm 15.3 -61.4, do 18.5 -69.9, dz 36.8 3, ec -2.2 -79.8, ee 59.4 24.8, eg 30.1 31.2,
eh 27.1 -13.2, er 15.3 38.9, es 40.4 -3.7, et 9 38.7, fi 60.2 25, fj -18.1 178.4, fk -51.7 -57.9,
fm 7.4 151.8, fo 62 -6.8, fr 48.9 2.3, ga 0.4 9.4, gb 51.5 -0.1, gd 12.1 -61.8, ge 41.7 44.8, gf 4.9 -52.3,
gg 49.5 -2.5, gh 5.5 -0.2, gi 36.1 -5.3, gl 64.2 -51.7, gm 13.5 -16.6, gn 9.5 -13.7, gp 16.2 -61.5,
gq 3.8 8.8, gr 38 23.7, gs -54.3 -36.5, gt 14.6 -90.5, gu 13.5 144.8, gw 11.8 -15.6, gy 6.8 -58.2,
hk 22.3 114.2, hn 14.1 -87.2, hr 45.8 16, ht 18.5 -72.3, hu 47.5 19.1, id -6.2 106.8, ie 53.3 -6.2,
il 31.8 35.2, im 54.1 -4.5, in 22.5 88.4, io -7.3 72.4, iq 33.4 44.4, ir 35.7 51.4, is 64.2 -21.9,
it 41.9 12.5, je 49.2 -2.1, jm 18 -76.8, jo 31.9 35.9, jp 35.6 139.7, ke -1.3 36.8, kg 42.9 74.6,
kh 11.6 104.9, ki 1.4 173, km -11.7 43.3, kn 17.3 -62.7, kp 39 125.8, kr 37.5 127, kw 29.3 48, ky 19.3 -81.4,
kz 43.2 77, la 18 102.6, lb 33.9 35.5, lc 14 -61, li 47.1 9.5, lk 6.9 79.8, lr 6.3 -10.8, ls -29.5 27.5,
lt 54.7 25.3, lu 49.6 6.2, lv 57 24.1, ly 32.9 13.2, ma 33.6 -7.6, mc 43.7 7.4, md 47 28.8, me 42.4 19.3,
mf 18.1 -63.1, mg -18.9 47.5, mh 7.2 171.2, mk 42 21.4, ml 12.7 -8, mm 16.8 96.2, mn 47.9 106.9,
mo 22.2 113.5, mp 15.2 145.8, mq 14.6 -61.1, mr 18.1 -15.9, ms 16.7 -62.2, mt 35.9 14.5, mu -20.2 57.5,
mv 4.2 73.5, mw -15.8 35, mx 19.4 -99.2, my 3.2 101.7, mz -26 32.6, na -22.6 17.1, nc -22.3 166.4,
ne 13.5 2.1, nf -29.1 168, ng 6.5 3.4, ni 12.2 -86.3, nl 52.4 4.9, no 59.9 10.8, np 27.7 85.3, nr -0.5 166.9,
nu -19 -169.9, nz -36.9 174.8, om 23.6 58.6, pa 9 -79.5, pe -12.1 -77, pf -17.5 -149.6, pg -9.5 147.2,
ph 14.6 121, pk 24.9 67, pl 52.2 21, pm 47 -56.3, pn -25.1 -130.1, pr 18.5 -66.1, ps 31.5 34.5, pt 38.7 -9.1,
pw 7.3 134.5, py -25.3 -57.7, qa 25.3 51.5, re -20.9 55.5, ro 44.4 26.1, rs 44.8 20.5, ru 55.8 37.6,
rw -1.9 30.1, sa 24.6 46.7, sb -9.5 160.2, sc -4.7 55.5, sd 15.6 32.5, se 59.3 18.1, sg 1.3 103.8,
sh -15.9 -5.7, si 46 14.5, sj 78 16, sk 48.1 17.1, sl 8.5 -13.2, sm 43.9 12.5, sn 14.7 -17.4, so 2.1 45.4,
sr 5.8 -55.2, ss 4.8 31.6, st 0.3 6.7, sv 13.7 -89.2, sx 18.1 -63, sy 33.5 36.3, sz -26.3 31.1,
tc 21.5 -71.1, td 12.1 15.1, tf -49.4 70.2, tg 6.1 1.2, th 13.8 100.5, tj 38.6 68.8, tk -9.4 -171.2,
tl -8.6 125.6, tm 38 58.4, tn 36.8 10.2, to -21.1 -175.2, tr 41 29, tt 10.7 -61.5, tv -8.5 179.2,
tw 25.1 121.5, tz -6.8 39.3, ua 50.4 30.5, ug 0.3 32.4, um 28.2 -177.4, us 41.9 -87.7, uy -34.9 -56.2,
uz 41.3 69.3, va 41.9 12.4, vc 13.2 -61.2, ve 10.5 -66.9, vg 18.4 -64.6, vi 18.4 -64.9, vn 10.8 106.7,
vu -17.7 168.4, wf -13.3 -176.2, ws -13.8 -171.7, ye 12.8 45.2, yt -12.8 45.2, za -26.2 28, zm -15.4 28.3,
zw -17.8 31.1
"""


def _read(entry: str) -> tuple[str, Place]:
    code, latitude, longitude = entry.split()
    return code, Place(float(latitude), float(longitude))


COUNTRIES: Final = dict(_read(entry) for entry in _TABLE.split(","))
"""ISO 3166-1 alpha-2 in lower case -> where it is."""


def parse_place(text: str) -> Place:
    """`latitude,longitude` in degrees. Raises ValueError."""
    latitude, longitude = (float(part) for part in text.split(","))
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise ValueError("no place on earth")
    return Place(latitude, longitude)


def distance_km(one: Place, other: Place) -> float:
    """Along a great circle (the haversine formula)."""
    lat_one, lat_other = radians(one.latitude), radians(other.latitude)
    north, east = lat_other - lat_one, radians(other.longitude - one.longitude)
    chord = sin(north / 2) ** 2 + cos(lat_one) * cos(lat_other) * sin(east / 2) ** 2
    return 2 * EARTH_RADIUS_KM * asin(sqrt(min(chord, 1.0)))
