// Configuration of OHIF 3.13.2 for the deepcac2 dashboard. See docs/viewer.md.
// __DICOMWEB__ is replaced by the address of the DICOMweb service when the file is served.
window.PUBLIC_URL = '/viewer/';
console.time('scriptToView'); // OHIF ends this timer and expects its page to have started it

// Our segmentations: first the slice with the most calcium. The heart is an outline; calcium is filled, each
// artery's and what was not counted in its own colour. All coronary calcium, of which the arteries' are parts,
// is then an outline that is hidden at first, as it would lie on their colours.
const CALCIUM = '18115005'; // SNOMED CT, pathologic calcification
// SNOMED CT: coronary artery, LM, LAD, LCX, RCA
const CORONARY = ['41801008', '3227004', '59438005', '57396003', '13647002'];
const FILLED = { fillAlpha: 0.75, outlineWidth: 1 };
const OUTLINED = { fillAlpha: 0, outlineWidth: 2 };
const styles = new Map(); // by segmentation and segment
const totals = new Map(); // by segmentation, the segment that others are parts of

// Our reports: of a report of measurements OHIF shows what it can draw on images, which of ours is nothing: their
// numbers belong to segments and points. Reports of other kinds it shows as text, and so it does ours, put into
// words here, since OHIF's own leave out what stands below a number, and have units that may be misread.
const OUR_CODES = '99DEEPCAC2'; // the coding scheme that our reports declare
const UNITS = { 1: '', "[hnsf'U]": 'HU', mm3: 'mm³', cm3: 'cm³' }; // by UCUM code; "2360 1" would be misread

const items = (value) => (Array.isArray(value) ? value : value ? [value] : []);
const first = (value) => items(value)[0] || {};
const millimetres = (values) => Array.from(values || [], (value) => Number(value).toFixed(1)).join(', ');

const inWords = (item) => {
  switch (item.ValueType) {
    case 'TEXT':
      return item.TextValue;
    case 'CODE':
      return first(item.ConceptCodeSequence).CodeMeaning;
    case 'NUM': {
      const measured = first(item.MeasuredValueSequence);
      const unit = first(measured.MeasurementUnitsCodeSequence).CodeValue;
      if (measured.NumericValue === undefined) {
        return '(no number)';
      }
      return `${measured.NumericValue} ${unit in UNITS ? UNITS[unit] : unit}`.trim();
    }
    case 'UIDREF':
      return item.UID;
    case 'PNAME':
      return first(item.PersonName).Alphabetic || '(hidden)';
    case 'SCOORD3D':
      return `${item.GraphicType} (${millimetres(item.GraphicData)}) mm`;
    case 'IMAGE': {
      const image = first(item.ReferencedSOPSequence);
      const segment = items(image.ReferencedSegmentNumber).join(', ');
      return `${segment ? `segment ${segment} of ` : ''}${image.ReferencedSOPInstanceUID}`;
    }
    default:
      return `(${item.ValueType})`;
  }
};

const nameOf = (item) => first(item.ConceptNameCodeSequence).CodeMeaning;

// A container as OHIF's view of texts reads it: a line for each item in it, and for each that belongs to one.
const asText = (container) => {
  const content = items(container.ContentSequence);
  const title = content.find((item) => nameOf(item) === 'Tracking Identifier');
  const lines = (item) => [
    { ValueType: 'TEXT', ConceptNameCodeSequence: { CodeMeaning: nameOf(item) }, TextValue: inWords(item) },
    ...items(item.ContentSequence).flatMap(lines),
  ];
  return {
    ValueType: 'CONTAINER',
    ConceptNameCodeSequence: {
      CodeMeaning: title ? `${nameOf(container)}: ${title.TextValue}` : nameOf(container),
    },
    ContinuityOfContent: 'SEPARATE',
    ContentSequence: content.flatMap((item) => (item.ValueType === 'CONTAINER' ? [asText(item)] : lines(item))),
  };
};

const showReportsAsText = ({ displaySetsAdded }) => {
  for (const displaySet of displaySetsAdded) {
    const report = displaySet.Modality === 'SR' && displaySet.instance;
    const schemes = report ? items(report.CodingSchemeIdentificationSequence) : [];
    if (schemes.some((scheme) => scheme.CodingSchemeDesignator === OUR_CODES)) {
      displaySet.isImagingMeasurementReport = false;
      displaySet.instances = [asText(report)];
    }
  }
};

// A click on a segment makes it flash, after which OHIF forgets how it was drawn: so that is said again, at once.
const keepStyles = (service) => {
  const flash = service.highlightSegment.bind(service);
  service.highlightSegment = (segmentationId, segmentIndex, viewportId, alpha, milliseconds = 750, ...more) => {
    flash(segmentationId, segmentIndex, viewportId, alpha, milliseconds, ...more);
    const style = styles.get(`${segmentationId} ${segmentIndex}`);
    let begun = null;
    const frame = (now) => {
      begun = begun === null ? now : begun;
      if (now - begun < milliseconds) {
        requestAnimationFrame(frame);
      } else {
        service.setStyle({ segmentationId, type: 'Labelmap', segmentIndex }, style);
      }
    };
    if (style) {
      requestAnimationFrame(frame);
    }
  };
};

const hideTotals = (service) => {
  const done = new Set();
  const key = ({ segmentationId, viewportId }) => `${viewportId} ${segmentationId}`;
  service.subscribe(service.EVENTS.SEGMENTATION_REPRESENTATION_REMOVED, (event) => done.delete(key(event)));
  service.subscribe(service.EVENTS.SEGMENTATION_REPRESENTATION_MODIFIED, (event) => {
    const { segmentationId, viewportId } = event;
    const [shown] = service.getSegmentationRepresentations(viewportId, { segmentationId });
    if (shown && totals.has(segmentationId) && !done.has(key(event))) {
      done.add(key(event));
      service.setSegmentVisibility(viewportId, segmentationId, totals.get(segmentationId), false, shown.type);
    }
  });
};

const deepcac2Extension = {
  id: 'deepcac2',
  preRegistration: ({ servicesManager }) => {
    keepStyles(servicesManager.services.segmentationService);
  },
  onModeEnter: ({ servicesManager }) => {
    const { displaySetService, segmentationService } = servicesManager.services;
    displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, showReportsAsText);
    hideTotals(segmentationService);
    segmentationService.subscribe(
      segmentationService.EVENTS.SEGMENTATION_LOADING_COMPLETE,
      ({ segmentationId, segDisplaySet }) => {
        const segments = (segDisplaySet && segDisplaySet.segMetadata && segDisplaySet.segMetadata.data) || [];
        const code = (segment, keyword) => first(segment && segment[keyword]).CodeValue;
        const calcified = segments.map((s) => code(s, 'SegmentedPropertyTypeCodeSequence') === CALCIUM);
        const calcium = calcified.indexOf(true);
        if (calcium < 0) {
          return;
        }
        const parted = segments.some(
          (s, index) =>
            index > calcium && calcified[index] && CORONARY.includes(code(s, 'AnatomicRegionSequence'))
        );
        if (parted) {
          totals.set(segmentationId, calcium);
        }
        segments.forEach((segment, index) => {
          if (segment) {
            const style = !calcified[index] || (index === calcium && parted) ? OUTLINED : FILLED;
            styles.set(`${segmentationId} ${index}`, style);
            segmentationService.setStyle({ segmentationId, type: 'Labelmap', segmentIndex: index }, style);
          }
        });
        // The slice that the dashboard names, where its link says one.
        const slice = new URLSearchParams(window.location.search).get('slice');
        const named = slice && segDisplaySet.labelMapImages.flat().find(
          (image) => image.referencedImageId.includes(`/instances/${slice}/`)
        );
        if (named) {
          segDisplaySet.firstSegmentedSliceImageId = named.referencedImageId;
          return;
        }
        let most = 0;
        let largest = 0;
        for (const image of segDisplaySet.labelMapImages.flat()) {
          let counted = 0;
          let other = 0;
          for (const value of image.voxelManager.getScalarData()) {
            if (value === calcium) {
              counted += 1;
            } else if (value) {
              other += 1;
            }
          }
          if (counted > most || (most === 0 && other > largest)) {
            segDisplaySet.firstSegmentedSliceImageId = image.referencedImageId;
          }
          most = Math.max(most, counted);
          largest = Math.max(largest, other);
        }
      }
    );
  },
};

window.config = {
  // The page stands at /viewer, the name of OHIF's basic mode; its files below /viewer/.
  routerBasename: '/',
  extensions: [deepcac2Extension],
  modes: [],
  modesConfiguration: {
    '@ohif/mode-longitudinal': {
      routes: {
        0: {
          layoutInstance: {
            props: {
              rightPanelClosed: { $set: false },
              rightPanels: { $set: ['@ohif/extension-cornerstone.panelModule.panelSegmentation'] },
            },
          },
        },
      },
    },
  },
  // A study is opened from the dashboard; there is no list of studies here.
  showStudyList: false,
  showPatientInfo: 'disabled',
  investigationalUseDialog: { option: 'never' },
  // Show a segmentation without asking first.
  disableConfirmationPrompts: true,
  showWarningMessageForCrossOrigin: false,
  showCPUFallbackMessage: true,
  showLoadingIndicator: true,
  strictZSpacingForVolumeViewport: true,
  showErrorDetails: 'production',
  maxNumberOfWebWorkers: 3,
  maxNumRequests: { interaction: 32, thumbnail: 4, prefetch: 8 },
  studyPrefetcher: { enabled: false },
  whiteLabeling: {
    createLogoComponentFn: (React) =>
      React.createElement(
        'a',
        { href: '/', className: 'text-primary px-3 text-base', 'data-cy': 'back-to-dashboard' },
        '← Dashboard'
      ),
  },
  customizationService: [
    {
      'ohif.tours': { $set: [] },
      'panelSegmentation.tableMode': { $set: 'expanded' },
    },
  ],
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'deepcac2',
        name: 'dicomweb',
        qidoRoot: __DICOMWEB__,
        wadoRoot: __DICOMWEB__,
        wadoUriRoot: __DICOMWEB__,
        qidoSupportsIncludeField: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        supportsReject: false,
        supportsStow: false,
        imageRendering: 'wadors',
        thumbnailRendering: 'thumbnail',
        thumbnailRequestStrategy: 'fetch',
        enableStudyLazyLoad: true,
        dicomUploadEnabled: false,
        singlepart: 'bulkdata,video',
        bulkDataURI: { enabled: true },
        omitQuotationForMultipartRequest: true,
      },
    },
  ],
  httpErrorHandler: (error) => {
    console.warn(`DICOMweb: status ${error.status}`);
  },
};
