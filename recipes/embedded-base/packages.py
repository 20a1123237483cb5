"""The Debian packages whose English text the embedded base model is pretrained on.

One line a package: name | license of its text, as its copyright file states it | what it is | reader. The
reader is only named where a package's files are not recognized by their names (see `reader_of`).
"""

from __future__ import annotations

from typing import NamedTuple


class Package(NamedTuple):
    """One Debian package of the corpus."""

    name: str
    license: str
    what: str
    reader: str


TABLE = """
debian-handbook | CC-BY-SA-3.0 or GPL-2+ | The Debian Administrator's Handbook |
dict-gcide | GPL-3+ | The Collaborative International Dictionary of English (Webster 1913) | dict
dict-wn | WordNet-3.0 (BSD-like) | WordNet: glosses and example sentences | wordnet
dict-jargon | public-domain | The Jargon File | dict
dict-devil | public-domain | The Devil's Dictionary by Ambrose Bierce | text
dict-foldoc | GFDL-1.1+ | Free On-Line Dictionary of Computing | dict
dict-vera | GFDL-1.3+ | Virtual Entity of Relevant Acronyms | dict
fortunes-min | BSD-3-clause | Sayings and riddles | fortunes
fortunes | BSD-3-clause | Sayings, quotations and short humour | fortunes
debian-history | GPL-2+ | A brief history of Debian |
gnome-user-docs | CC-BY-SA-3.0 | The GNOME desktop's user and administrator guides |
libreoffice-help-en-us | MPL-2.0 | LibreOffice's help |
gimp-help-en | GFDL-1.2+ | The image editor's user manual |
khelpcenter | GFDL-1.2+ | KDE's introduction and fundamentals |
debian-reference-en | GPL-2+ | Debian Reference |
installation-guide-amd64 | GPL-2 | The installation guide |
debian-faq | GPL-2+ | The Debian FAQ |
developers-reference | GPL-2+ | The Debian developer's reference |
maint-guide | GPL-2+ | The new maintainer's guide |
harden-doc | GPL-2+ | The securing Debian manual |
debian-policy | GPL-2+ | Debian's policy |
aptitude-doc-en | GPL-2+ | The package manager's user manual |
apt-doc | GPL-2+ | The package manager's guides |
postgresql-doc-15 | PostgreSQL | The database's manual |
apache2-doc | Apache-2.0 | The web server's manual |
git-doc | GPL-2 | Git's manual and guides |
perl-doc | GPL-1+ or Artistic | Perl's manual and tutorials |
manpages | Linux-man-pages copyleft and others (DFSG-free) | Manual pages about Linux |
manpages-dev | Linux-man-pages copyleft and others (DFSG-free) | Manual pages on system calls |
python3.11-doc | PSF-2 | Python's tutorial, how-tos, FAQ, news; never the library's reference |
python-django-doc | BSD-3-clause | The web framework's documentation |
python-scipy-doc | BSD-3-clause | Numerical routines |
python-sklearn-doc | BSD-3-clause | Machine learning's user guide |
python-sqlalchemy-doc | MIT | The database toolkit's documentation |
octave-doc | GPL-3+ | The numerical language's manual |
gnuplot-doc | gnuplot | Plotting |
vim-doc | Vim | The editor's help |
exim4-doc-html | GPL-2+ | The mail server's specification |
mailman3-doc | GPL-3+ | Mailing lists |
lilypond-doc-html | GFDL-1.3+ | Engraving music: manuals and essay |
gnucash-docs | GFDL-1.1+ | Book-keeping: tutorial and concepts |
linux-doc-6.1 | GPL-2 | The Linux kernel's documentation |
rust-doc | MIT or Apache-2.0 | The Rust book, and the library's reference |
sqlite3-doc | public-domain | The SQLite database's documentation |
stellarium-data | GPL-2+, CC-BY-SA-4.0 | Sky cultures: myths and constellations |
kstars-data | GPL-2+, GFDL-1.2+ | Astronomy: handbook |
endless-sky-data | GPL-3+, CC-BY-SA-4.0 | A space game's stories | quoted
freeorion-data | GPL-2+, CC-BY-SA-3.0 | A space game's descriptions | stringtable
wesnoth-1.16-data | GPL-2+ | A fantasy game's story | translatable
wesnoth-1.16-httt | GPL-2+ | Campaign: Heir to the Throne | translatable
crawl-common | GPL-2+ | Descriptions of monsters, places and things | keyed
angband-data | GPL-2 | Descriptions of monsters and things | keyed
freeciv-data | GPL-2+ | History of the wonders and peoples | translatable
aisleriot | GPL-3+, GFDL-1.1+ | The rules of eighty card games |
naev-data | GPL-3+ | A space game's stories | translatable
freedroidrpg-data | GPL-2+ | A role-playing game's dialogue | translatable
widelands-data | GPL-2+ | A settlers game's campaigns and help | translatable
gramps | GPL-2+ | Genealogy |
kalzium-data | GPL-2+, GFDL-1.2+ | Chemistry |
erlang-doc | Apache-2.0 | The Erlang language and library |
tcl8.6-doc | Tcl (BSD-like) | The Tcl language's manual pages |
sbcl-doc | public-domain, BSD-3-clause | Steel Bank Common Lisp's manual |
nodejs-doc | MIT | The JavaScript runtime's documentation |
bind9-doc | MPL-2.0 | The name server's manual |
ntpsec-doc | NTP, BSD-2-clause | Keeping time over a network |
postfix-doc | IPL-1.0 or EPL-2.0 | The mail server's guides |
shorewall-doc | GFDL-1.2+ | Firewalls |
wireshark-doc | GPL-2+ | Looking into network traffic |
csound-doc | GFDL-1.2+ | Sound synthesis |
puredata-doc | BSD-3-clause | Visual music programming |
supercollider-common | GPL-3+ | Sound synthesis |
asymptote-doc | LGPL-3+ | Drawing by program |
maxima-doc | GPL-2+ | Computer algebra |
grass-doc | GPL-2+ | Geography |
gap-doc | GPL-2+ | Algebra |
sphinx-doc | BSD-2-clause | Writing documentation |
python-celery-doc | BSD-3-clause, CC-BY-SA-4.0 | Queues of tasks |
python-flask-doc | BSD-3-clause | A web framework |
python-werkzeug-doc | BSD-3-clause | A web toolkit |
python-tornado-doc | Apache-2.0 | A web server |
twisted-doc | MIT | Network programming |
python-pandas-doc | BSD-3-clause | Tables of data |
python-sympy-doc | BSD-3-clause | Symbolic mathematics |
python-xarray-doc | Apache-2.0 | Labeled arrays |
python-pytest-doc | MIT | Testing |
python-hypothesis-doc | MPL-2.0 | Testing by properties |
python-scrapy-doc | BSD-3-clause | Reading the web |
mercurial-common | GPL-2+ | Version control |
nano | GFDL-NIV or GPL-3+ | A text editor |
okular | GFDL-1.2+ | KDE: documents |
kmail | GFDL-1.2+ | KDE: mail |
kaddressbook | GFDL-1.2+ | KDE: addresses |
step | GFDL-1.2+ | KDE: physics |
kig | GFDL-1.2+ | KDE: geometry |
kmplot | GFDL-1.2+ | KDE: functions |
khangman | GFDL-1.2+ | KDE: guess the word |
kturtle | GFDL-1.2+ | KDE: first programs |
krusader | GFDL-1.1+ | KDE: files |
kile | GFDL-1.2+ | KDE: LaTeX |
kpat | GFDL-1.2+ | KDE: patience |
kgoldrunner | GFDL-1.2+ | KDE: game |
evolution-common | CC-BY-SA-3.0 | GNOME: mail and calendar |
gedit-common | CC-BY-SA-3.0 | GNOME: text editor |
eog | CC-BY-SA-3.0 | GNOME: images |
evince-common | CC-BY-SA-3.0 | GNOME: documents |
totem-common | CC-BY-SA-3.0 | GNOME: films |
gnome-terminal-data | CC-BY-SA-3.0 | GNOME: terminal |
gnome-chess | CC-BY-SA-3.0 | GNOME: chess |
planner-doc | GFDL-1.1+ | Project management |
dia-common | GFDL-NIV-1.1+ | Diagrams |
gnumeric-doc | GFDL-1.1+ | Spreadsheet |
orca | CC-BY-SA-3.0 | Screen reader |
brasero-common | CC-BY-SA-3.0 | GNOME: discs |
shotwell-common | CC-BY-SA-3.0 | GNOME: photographs |
simple-scan | CC-BY-SA-3.0 | GNOME: scanner |
seahorse | CC-BY-SA-3.0 | GNOME: keys |
mate-user-guide | GFDL-1.1+ | The MATE desktop's guide |
wesnoth-1.16-utbs | GPL-2+ | Campaign: Under the Burning Suns | translatable
wesnoth-1.16-tsg | GPL-2+ | Campaign: The South Guard | translatable
wesnoth-1.16-trow | GPL-2+ | Campaign: The Rise of Wesnoth | translatable
wesnoth-1.16-ttb | GPL-2+ | Campaign: A Tale of Two Brothers | translatable
wesnoth-1.16-ei | GPL-2+ | Campaign: The Eastern Invasion | translatable
wesnoth-1.16-did | GPL-2+ | Campaign: Descent into Darkness | translatable
wesnoth-1.16-dm | GPL-2+ | Campaign: Delfador's Memoirs | translatable
wesnoth-1.16-dw | GPL-2+ | Campaign: Dead Water | translatable
wesnoth-1.16-l | GPL-2+ | Campaign: Liberty | translatable
wesnoth-1.16-low | GPL-2+ | Campaign: Legend of Wesmere | translatable
wesnoth-1.16-nr | GPL-2+ | Campaign: Northern Rebirth | translatable
wesnoth-1.16-sof | GPL-2+ | Campaign: The Sceptre of Fire | translatable
wesnoth-1.16-sotbe | GPL-2+ | Campaign: Son of the Black-Eye | translatable
wesnoth-1.16-thot | GPL-2+ | Campaign: The Hammer of Thursagan | translatable
wesnoth-1.16-sota | GPL-2+ | Campaign: Secrets of the Ancients | translatable
sgt-puzzles | MIT | Puzzles and their rules |
lyx-common | GPL-2+ | Document processor |
coreutils | GFDL-NIV-1.3+, GPL-3+ | The basic commands |
wget | GFDL-NIV-1.2+ | Downloading |
tar | GPL-3+ | Archives |
findutils | GPL-3+ | Finding files |
bash | GPL-3+ | The shell |
bash-doc | GPL-3+ | The shell: guides |
texinfo | GPL-3+ | Documentation system |
debhelper | GPL-2+ | Building packages |
debconf-doc | BSD-2-clause | Configuring packages |
lintian | GPL-2+ | Checking packages |
systemd | LGPL-2.1+ | System and services |
xorg-docs | MIT | The X window system |
openssh-client | BSD-2-clause and similar | Secure shell |
openssl | Apache-2.0 | Cryptography: commands |
libssl-doc | Apache-2.0 | Cryptography: library |
ffmpeg | LGPL-2.1+ | Sound and film |
imagemagick-6-doc | ImageMagick | Images |
povray-doc | AGPL-3+, CC-BY-SA-3.0 | Ray tracing |
gpsd | BSD-2-clause | Satellite positioning |
postgis-doc | CC-BY-SA-3.0 | Geography in a database |
mariadb-server | GPL-2 | A database's manual pages |
groff | GPL-3+, GFDL-1.3+ | Typesetting |
zsh-doc | Zsh (MIT-like) | The Z shell |
fish-common | GPL-2 | The friendly shell |
elinks-doc | GPL-2 | A text browser |
alpine-doc | Apache-2.0 | A mail program |
fetchmail | GPL-2+ | Fetching mail |
procmail | GPL-2+ or Artistic | Sorting mail |
spamassassin | Apache-2.0 | Filtering mail |
guile-3.0-doc | GFDL-1.3+ | The Guile language |
mit-scheme-doc | GFDL-1.2+ | The Scheme language |
clisp-doc | GPL-2+ | Common Lisp |
scheme48-doc | BSD-3-clause | The Scheme language |
swi-prolog-doc | BSD-2-clause | The Prolog language |
gprolog-doc | GPL-3+ | The Prolog language |
yorick-doc | BSD-3-clause | A numerical language |
r-doc-html | GPL-2+ | The R language's manuals |
mutt | GPL-2+ | A mail program |
gretl-doc | GPL-3+ | Econometrics |
"""

PACKAGES = [Package(*(cell.strip() for cell in line.split("|"))) for line in TABLE.strip().splitlines()]
